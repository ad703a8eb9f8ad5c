
/* ---- the parts of a module ---------------------------------------------------------------------------------------- */

#ifdef __cplusplus
#define RF_C extern "C"
#else
#define RF_C extern
#endif

RF_C const RfManifest rf_manifest;
/** The module's description of itself: RF_MANIFEST = { RF_VERSIONS, .kind = ... }; */
#define RF_MANIFEST __attribute__((section(".ringfence"), used)) const RfManifest rf_manifest
/** The first two fields of a manifest. */
#define RF_VERSIONS .magic = RF_MAGIC, .abi_version = RF_ABI_VERSION
/** The pci_ids in the manifest of a module that drives no PCI function. */
#define RF_NO_PCI_IDS {{0xffff, 0xffff}}
/** The zero registers of a reset recipe that has none, in a manifest. */
#define RF_NO_REGISTERS {RF_NO_REGISTER, RF_NO_REGISTER}
/** A parameter: RF_PARAMETER depth = { .name = "depth", ... }; the kernel writes it before it
 * enters the driver. The driver reads it with RF_READ. */
#define RF_PARAMETER __attribute__((section(".ringfence.parameters"), used)) static RfParameter
/** Reads memory that somebody else may write. */
#define RF_READ(place) (*(const volatile __typeof__(place) *)&(place))

/** The one function that the kernel calls. operation is RF_INIT, RF_POLL, RF_EXIT, RF_COMMAND,
 * RF_NULL, RF_SAVE or RF_RESTORE. It returns 0 or more, or -RF_REFUSED_...; for RF_POLL it returns bits RF_REPLY_.... */
RF_C int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c);

/* ---- text --------------------------------------------------------------------------------------------------------- */

/** Returns the number of bytes of a text before its terminating zero. */
static inline uint64_t rf_length(const char *text)
{
    uint64_t len_bytes = 0;
    while (text[len_bytes])
        len_bytes++;
    return len_bytes;
}

/** Writes a line to the kernel's log; level is RF_LOG_.... */
static inline void rf_log_text(uint64_t level, const char *text)
{
    rf_log(level, text, rf_length(text));
}

/** Writes text to the user who typed the command that is being carried out. */
static inline void rf_answer_text(const char *text)
{
    rf_answer(text, rf_length(text));
}

/** Registers a command that the driver understands, in RF_INIT. The text is the command as it is
 * typed, a tab, and its description. */
static inline int64_t rf_command_text(const char *text)
{
    return rf_command(text, rf_length(text));
}

/** Returns the mailbox page, RF_PAGE_SIZE bytes. In RF_RESTORE its first a bytes are the state of
 * the build before, of version b; in RF_SAVE the driver writes its state there. */
static inline void *rf_mailbox(void)
{
    uint64_t here = (uint64_t)(uintptr_t)&rf_manifest;
    return (void *)(uintptr_t)((here & ~(uint64_t)(RF_SLOT_SIZE - 1)) + RF_MAILBOX);
}

/** Returns the result of RF_SAVE for a state of so many bytes, and of this version. */
static inline int64_t rf_saved(uint32_t len_bytes, uint32_t version)
{
    return (int64_t)(len_bytes | (uint64_t)(version & 0x7fffffff) << 32);
}

/** Returns the text that was typed after "tell NAME", in RF_COMMAND. It is a bytes long, where a is
 * rf_upcall's argument, and has no terminating zero. */
static inline const char *rf_typed(void)
{
    return (const char *)rf_mailbox();
}

/** Returns whether the typed text is this text. */
static inline int rf_is(const char *typed, uint64_t len_bytes, const char *text)
{
    return len_bytes == rf_length(text) && memcmp(typed, text, len_bytes) == 0;
}

/* ---- the device --------------------------------------------------------------------------------------------------- */

/** Keeps the compiler from moving memory accesses across it. */
#define RF_BARRIER() __asm__ volatile("" : : : "memory")

#define RF_REGISTER(bits)                                                                                              \
    static inline uint##bits##_t rf_read##bits(uint64_t start, uint64_t offset)                                        \
    {                                                                                                                  \
        return *(volatile uint##bits##_t *)(uintptr_t)(start + offset);                                                \
    }                                                                                                                  \
    static inline void rf_write##bits(uint64_t start, uint64_t offset, uint##bits##_t value)                           \
    {                                                                                                                  \
        *(volatile uint##bits##_t *)(uintptr_t)(start + offset) = value;                                               \
    }
/** rf_read32(start, offset), rf_write32(start, offset, value)...: access registers of a memory BAR;
 * start is the result of rf_bar_map. */
RF_REGISTER(8)
RF_REGISTER(16)
RF_REGISTER(32)
RF_REGISTER(64)

#define RF_PORT(bits, suffix, name)                                                                                    \
    static inline uint##bits##_t rf_in##bits(uint64_t first, uint64_t offset)                                          \
    {                                                                                                                  \
        uint##bits##_t value;                                                                                          \
        __asm__ volatile("in" suffix " %w1, %" name "0" : "=a"(value) : "Nd"((uint16_t)(first + offset)));             \
        return value;                                                                                                  \
    }                                                                                                                  \
    static inline void rf_out##bits(uint64_t first, uint64_t offset, uint##bits##_t value)                             \
    {                                                                                                                  \
        __asm__ volatile("out" suffix " %" name "0, %w1" : : "a"(value), "Nd"((uint16_t)(first + offset)) : "memory"); \
    }
/** rf_in8(first, offset), rf_out8(first, offset, value)...: access ports of an I/O BAR; first is
 * the result of rf_bar_map. */
RF_PORT(8, "b", "b")
RF_PORT(16, "w", "w")
RF_PORT(32, "l", "k")

/** Lets the device read and write memory. */
static inline int64_t rf_enable_dma(void)
{
    return rf_pci_write(4, 2, 1 << 2);
}

/** Returns whether the events of RF_POLL include the device's own interrupt of this number. */
static inline int rf_has_vector(uint64_t events, unsigned number)
{
    return (events & (uint64_t)RF_EVENT_VECTOR_0 << number) != 0;
}

/* ---- queues (kernel/abi/src/queue.rs) ----------------------------------------------------------------------------- */

/** The driver's end of a ring of 64-bit entries. */
typedef struct {
    uint64_t base;     /* index of its first word */
    uint64_t capacity; /* a power of two */
    uint64_t count;    /* entries ever put or taken by the driver */
} RfRing;

/** Takes an entry from the kernel; returns 0 if there is none. */
static inline int rf_ring_take(volatile uint64_t *memory, RfRing *ring, uint64_t *entry)
{
    if (memory[ring->base] == ring->count)
        return 0;
    RF_BARRIER();
    *entry = memory[ring->base + 16 + (ring->count & (ring->capacity - 1))];
    memory[ring->base + 8] = ++ring->count;
    return 1;
}

/** Puts an entry. The ring has room for all frames or requests that the kernel has lent. */
static inline void rf_ring_put(volatile uint64_t *memory, RfRing *ring, uint64_t entry)
{
    RF_BARRIER();
    memory[ring->base + 16 + (ring->count & (ring->capacity - 1))] = entry;
    memory[ring->base] = ++ring->count;
}

/* ---- network interfaces ------------------------------------------------------------------------------------------- */

/** The queues of a network interface. */
typedef struct {
    volatile uint64_t *memory;
    RfRing transmit, transmitted, empty, received;
} RfNet;

/** A frame that the driver owns until it gives it back, which it may do once. */
typedef struct {
    uint64_t address;   /* the frame's address for the device */
    uint8_t *bytes;     /* the frame's address for the driver */
    uint32_t number;    /* below RF_TX_FRAMES or RF_RX_FRAMES */
    uint32_t len_bytes; /* bytes to be sent, or RF_FRAME_BYTES of room */
    uint16_t queue;     /* the card's queue, if the driver has declared several; set it for a received frame */
    uint8_t sum_start;  /* with RF_OFFLOAD_TX_CHECKSUM: the first byte of the sum to complete, or 0 for none */
    uint8_t sum_offset; /* and the sum's place, in bytes after it */
} RfFrame;

/** Offers an interface with the abilities in info, which is zero but for them and the address:
 * can_hear (RF_HEARS_...), max_frame, offload (RF_OFFLOAD_...), queues. Returns 0, or the refusal. */
static inline int64_t rf_net_offer_info(RfNet *net, const RfNetInfo *info)
{
    int64_t start = rf_offer(info, sizeof *info);
    if (start < 0)
        return start;
    const RfRing transmit = RF_NET_TRANSMIT, transmitted = RF_NET_TRANSMITTED;
    const RfRing empty = RF_NET_EMPTY, received = RF_NET_RECEIVED;
    net->memory = (volatile uint64_t *)(uintptr_t)start;
    net->transmit = transmit, net->transmitted = transmitted, net->empty = empty, net->received = received;
    return 0;
}

/** Offers an interface. Returns 0, or the refusal. */
static inline int64_t rf_net_offer(RfNet *net, const uint8_t mac[6])
{
    RfNetInfo info;
    memset(&info, 0, sizeof info);
    memcpy(info.mac, mac, 6);
    return rf_net_offer_info(net, &info);
}

/** Returns the extra frames that the card is to hear (RF_HEARS_...). RF_EVENT_HEARING tells of a
 * change. */
static inline uint64_t rf_net_hearing(const RfNet *net)
{
    return net->memory[RF_NET_HEARING];
}

/** Copies the Ethernet address of a group to hear (RF_HEARS_GROUPS). Returns 1 if there is a group of
 * this number, or 0; the numbers begin at 0. */
static inline int rf_net_group(const RfNet *net, unsigned number, uint8_t group[6])
{
    uint64_t word = number < RF_NET_MAX_GROUPS ? net->memory[RF_NET_GROUPS + number] : 0;
    for (unsigned byte = 0; byte < 6; byte++)
        group[byte] = (uint8_t)(word >> 8 * byte);
    return word != 0;
}

/** Returns the end address of the highest frame for the device. Some devices cannot reach all of
 * memory. */
static inline uint64_t rf_net_end(const RfNet *net)
{
    uint64_t tx = net->memory[RF_TX_ADDRESS] + (uint64_t)RF_TX_FRAMES * RF_FRAME_BYTES;
    uint64_t rx = net->memory[RF_RX_ADDRESS] + (uint64_t)RF_RX_FRAMES * RF_FRAME_BYTES;
    return tx > rx ? tx : rx;
}

/** Takes a frame to be sent; returns 0 if there is none. */
static inline int rf_net_take_transmit(RfNet *net, RfFrame *frame)
{
    uint64_t entry;
    if (!rf_ring_take(net->memory, &net->transmit, &entry))
        return 0;
    frame->number = (uint16_t)entry;
    frame->len_bytes = (uint16_t)(entry >> 32);
    frame->queue = (uint16_t)(entry >> 16);
    frame->sum_start = (uint8_t)(entry >> 48);
    frame->sum_offset = (uint8_t)(entry >> 56);
    frame->address = net->memory[RF_TX_ADDRESS] + (uint64_t)frame->number * RF_FRAME_BYTES;
    frame->bytes = (uint8_t *)(uintptr_t)net->memory[RF_TX_START] + (uint64_t)frame->number * RF_FRAME_BYTES;
    return 1;
}

/** Pads a frame to be sent with zeros to the shortest length on a wire. */
static inline void rf_net_pad(RfFrame *frame)
{
    if (frame->len_bytes < RF_MIN_FRAME) {
        memset(frame->bytes + frame->len_bytes, 0, RF_MIN_FRAME - frame->len_bytes);
        frame->len_bytes = RF_MIN_FRAME;
    }
}

/** Gives back a frame that was sent. */
static inline void rf_net_give_transmitted(RfNet *net, const RfFrame *frame)
{
    rf_ring_put(net->memory, &net->transmitted, frame->number);
}

/** Takes an empty frame to receive into; returns 0 if there is none. */
static inline int rf_net_take_empty(RfNet *net, RfFrame *frame)
{
    uint64_t entry;
    if (!rf_ring_take(net->memory, &net->empty, &entry))
        return 0;
    frame->number = (uint16_t)entry;
    frame->len_bytes = RF_FRAME_BYTES;
    frame->queue = 0, frame->sum_start = 0, frame->sum_offset = 0;
    frame->address = net->memory[RF_RX_ADDRESS] + (uint64_t)frame->number * RF_FRAME_BYTES;
    frame->bytes = (uint8_t *)(uintptr_t)net->memory[RF_RX_START] + (uint64_t)frame->number * RF_FRAME_BYTES;
    return 1;
}

/* The entry for a received frame. A length that has no room in it is too long in any case. */
static inline uint64_t rf_net_received(const RfFrame *frame, uint32_t len_bytes)
{
    uint64_t len = len_bytes < 0xffff ? len_bytes : 0xffff;
    return frame->number | (uint64_t)frame->queue << 16 | len << 32;
}

/** Delivers a frame that came from rf_net_take_empty, of len_bytes received bytes, without the
 * check sequence. With a length of 0 the frame goes back empty. */
static inline void rf_net_give_received(RfNet *net, const RfFrame *frame, uint32_t len_bytes)
{
    rf_ring_put(net->memory, &net->received, rf_net_received(frame, len_bytes));
}

/** The same of a frame whose TCP or UDP checksum the card has found right: of a driver that has
 * declared RF_OFFLOAD_RX_CHECKSUM. */
static inline void rf_net_give_checked(RfNet *net, const RfFrame *frame, uint32_t len_bytes)
{
    rf_ring_put(net->memory, &net->received, rf_net_received(frame, len_bytes) | 1ull << 48);
}

/** Adds a number of frames to a counter of errors for 'ip'; counter is RfCounter_.... */
static inline void rf_net_count(RfNet *net, uint64_t counter, uint64_t frames)
{
    net->memory[RF_COUNTERS + counter] = net->memory[RF_COUNTERS + counter] + frames;
}

/* ---- SCSI adapters and block devices ------------------------------------------------------------------------------ */

/** The queues of a SCSI adapter or of a block device. */
typedef struct {
    volatile uint64_t *memory;
    RfRing submit, complete;
} RfRequests;

/** Opens the queues with the result of rf_offer. Returns 0, or the refusal. */
static inline int64_t rf_requests_open(RfRequests *requests, int64_t offered, RfRing submit, RfRing complete)
{
    if (offered < 0)
        return offered;
    requests->memory = (volatile uint64_t *)(uintptr_t)offered;
    requests->submit = submit, requests->complete = complete;
    return 0;
}

/** Offers a SCSI adapter. Returns 0, or the refusal. */
static inline int64_t rf_scsi_offer(RfRequests *requests, const RfScsiInfo *info)
{
    const RfRing submit = RF_SCSI_SUBMIT, complete = RF_SCSI_COMPLETE;
    return rf_requests_open(requests, rf_offer(info, sizeof *info), submit, complete);
}

/** Takes a request and its number; returns 0 if there is none. */
static inline int rf_scsi_take(RfRequests *requests, uint64_t *number, RfRequest *request)
{
    if (!rf_ring_take(requests->memory, &requests->submit, number))
        return 0;
    memcpy(request, (const void *)&requests->memory[RF_SCSI_FIRST + *number * RF_SCSI_WORDS], sizeof *request);
    return 1;
}

/** Completes the request with this number. */
static inline void rf_scsi_complete(RfRequests *requests, uint64_t number, const RfOutcome *outcome)
{
    volatile uint64_t *place = &requests->memory[RF_SCSI_FIRST + number * RF_SCSI_WORDS + sizeof(RfRequest) / 8];
    memcpy((void *)place, outcome, sizeof *outcome);
    rf_ring_put(requests->memory, &requests->complete, number);
}

/** Offers a block device. Returns 0, or the refusal. */
static inline int64_t rf_block_offer(RfRequests *requests, const RfBlockInfo *info)
{
    const RfRing submit = RF_BLOCK_SUBMIT, complete = RF_BLOCK_COMPLETE;
    return rf_requests_open(requests, rf_offer(info, sizeof *info), submit, complete);
}

/** Takes a request and its number; returns 0 if there is none. */
static inline int rf_block_take(RfRequests *requests, uint64_t *number, RfBlockRequest *request)
{
    if (!rf_ring_take(requests->memory, &requests->submit, number))
        return 0;
    memcpy(request, (const void *)&requests->memory[RF_BLOCK_FIRST + *number * RF_BLOCK_WORDS], sizeof *request);
    return 1;
}

/** Completes the request with this number. status is RF_BLOCK_OK, RF_BLOCK_ERROR or
 * RF_BLOCK_UNSUPPORTED. */
static inline void rf_block_complete(RfRequests *requests, uint64_t number, uint64_t status)
{
    requests->memory[RF_BLOCK_FIRST + number * RF_BLOCK_WORDS + sizeof(RfBlockRequest) / 8] = status;
    rf_ring_put(requests->memory, &requests->complete, number);
}

#endif /* RINGFENCE_H */
