/* Realtek RTL8139 (as drivers/rtl8139), for authors of drivers in C. Sections are those of the
   RTL8139C(L) Data Sheet, 1.4. A person loads it: 'rmmod rtl8139; insmod rtl8139-c'. */
#include <ringfence.h>

/* Ports of BAR 0. */
enum {
    ADDRESS = 0x00,
    MULTICAST = 0x08,
    TX_STATUS = 0x10, /* the status of each of four frames, 4 bytes apart; then their addresses */
    TX_ADDRESS = 0x20,
    RING = 0x30,
    COMMAND = 0x37,
    READ = 0x38,
    MASK = 0x3c,
    CAUSES = 0x3e,
    TX_CONFIGURATION = 0x40,
    RX_CONFIGURATION = 0x44,
    CONFIGURATION_1 = 0x52,
    MEDIA_STATUS = 0x58,
};
enum { RING_EMPTY = 1, TRANSMIT = 4, RECEIVE = 8, RESET = 16 };                          /* COMMAND */
enum { RECEIVED = 1, RX_ERROR = 2, SENT = 4, TX_ERROR = 8, FULL = 16, LINK = 32, FIFO = 64 }; /* CAUSES, MASK */
enum { TX_UNDERRUN = 1 << 14, TX_SENT = 1 << 15, TX_GIVEN_UP = 1 << 30 };                /* TX_STATUS */
enum { RING_BYTES = 32 << 10, BEHIND_RING = 16, SENDING = 4, CHECK = 4 };

RF_MANIFEST = {
    RF_VERSIONS,
    .kind = RfKind_Nic,
    .name = "rtl8139-c",
    .version = "0.1.0",
    .pci_ids = {{0x10ec, 0x8139}, {0xffff, 0xffff}},
    .heap_bytes = 0,
    .dma_bytes = 64 << 10,
    .stack_bytes = 32 << 10,
    .upcall_ms = 200,
    .policy = RfPolicy_Restart,
    .flags = RF_BY_HAND,
    /* The kernel resets the card when the driver no longer can. */
    .reset = {.method = RfResetMethod_Register, .bar = 0, .offset = COMMAND, .width_bytes = 1, .set = RESET,
              .wait_mask = RESET, .zero = RF_NO_REGISTERS, .limit_us = 10000},
};

RF_PARAMETER promiscuous = {
    .name = "promiscuous", .what = "take frames for others as well", .kind = RfParameterKind_Flag,
};

static uint64_t ports;
static RfNet net;
static const uint8_t *ring; /* its address for the driver */
static uint64_t ring_at;    /* the offset of the next frame in the ring */
static RfFrame sending[SENDING];
static uint64_t next, done; /* the total number of frames given to the card, and taken back */

/* 5.7: the receiver must be on before it is told which frames to receive. */
static void start_receiver(int64_t ring_address)
{
    enum { OTHERS = 1, OWN = 2, ALL = 8, ANY_BURST = 7 << 8, BYTES_32K = 2 << 11, NO_LIMIT = 7 << 13 };
    rf_out8(ports, COMMAND, TRANSMIT);
    rf_out32(ports, RING, (uint32_t)ring_address);
    rf_out32(ports, MULTICAST, 0);
    rf_out32(ports, MULTICAST + 4, 0);
    rf_out8(ports, COMMAND, TRANSMIT | RECEIVE);
    uint32_t others = RF_READ(promiscuous.value) ? OTHERS : 0;
    rf_out32(ports, RX_CONFIGURATION, OWN | ALL | ANY_BURST | BYTES_32K | NO_LIMIT | others);
    ring_at = 0;
    rf_out16(ports, READ, 0xfff0);
}

static int64_t init(void)
{
    int64_t result = rf_bar_map(0);
    if (result < 0)
        return result;
    ports = (uint64_t)result;
    rf_out8(ports, CONFIGURATION_1, 0);
    rf_out8(ports, COMMAND, RESET);
    int64_t deadline = rf_time_ns() + 10000000;
    while (rf_in8(ports, COMMAND) & RESET) {
        if (rf_time_ns() > deadline)
            return -RF_REFUSED_NO_ANSWER;
    }
    uint8_t mac[6];
    for (unsigned i = 0; i < 6; i++)
        mac[i] = rf_in8(ports, ADDRESS + i);
    if ((result = rf_dma_alloc(RING_BYTES + BEHIND_RING)) < 0)
        return result;
    ring = (const uint8_t *)(uintptr_t)result;
    int64_t ring_address = rf_dma_address((uint64_t)result);
    if ((result = rf_net_offer(&net, mac)) < 0)
        return result;
    /* The card has 32-bit addresses. */
    if (ring_address < 0 || (ring_address + RING_BYTES + BEHIND_RING) >> 32 || rf_net_end(&net) >> 32)
        return -RF_REFUSED_NO_MEMORY;
    if ((result = rf_enable_dma()) < 0)
        return result;
    start_receiver(ring_address);
    rf_out32(ports, TX_CONFIGURATION, 6 << 8 | 3 << 24);
    rf_out16(ports, MASK, RECEIVED | RX_ERROR | SENT | TX_ERROR | FULL | LINK | FIFO);
    rf_log_text(RF_LOG_INFO, "RTL8139, in C");
    return rf_irq_enable();
}

static void transmit(void)
{
    for (;;) {
        while (done != next &&
               rf_in32(ports, TX_STATUS + 4 * (done % SENDING)) & (TX_SENT | TX_UNDERRUN | TX_GIVEN_UP))
            rf_net_give_transmitted(&net, &sending[done++ % SENDING]);
        RfFrame *frame = &sending[next % SENDING];
        if (next - done == SENDING || !rf_net_take_transmit(&net, frame))
            return;
        rf_net_pad(frame);
        rf_out32(ports, TX_ADDRESS + 4 * (next % SENDING), (uint32_t)frame->address);
        rf_out32(ports, TX_STATUS + 4 * (next++ % SENDING), frame->len_bytes);
    }
}

static void receive(void)
{
    while (!(rf_in8(ports, COMMAND) & RING_EMPTY)) {
        RfFrame frame;
        uint16_t header[2]; /* the status, and the length including the check sequence */
        RF_BARRIER();
        memcpy(header, ring + ring_at, sizeof header);
        if (header[1] == 0xfff0 || !rf_net_take_empty(&net, &frame))
            return; /* the card is still writing the frame, or no empty frame is there for it */
        if (!(header[0] & 1) || header[1] < CHECK || header[1] >= RING_BYTES) {
            rf_net_give_received(&net, &frame, 0);
            rf_net_count(&net, RfCounter_RxErrors, 1);
            rf_log_text(RF_LOG_WARN, "a damaged frame: the receive ring is set up anew");
            start_receiver(rf_dma_address((uint64_t)(uintptr_t)ring));
            return;
        }
        uint32_t len_bytes = header[1] - CHECK, start = (ring_at + 4) % RING_BYTES, first = RING_BYTES - start;
        if (len_bytes > RF_MAX_FRAME)
            len_bytes = 0; /* a frame that is too long is delivered empty */
        if (first > len_bytes)
            first = len_bytes;
        memcpy(frame.bytes, ring + start, first);
        memcpy(frame.bytes + first, ring, len_bytes - first);
        rf_net_give_received(&net, &frame, len_bytes);
        ring_at = (ring_at + 4 + header[1] + 3) / 4 * 4 % RING_BYTES;
        rf_out16(ports, READ, (uint16_t)(ring_at - 16));
    }
}

static int64_t poll(uint64_t events)
{
    int64_t reply = RF_REPLY_ACKNOWLEDGED;
    if (events & RF_EVENT_INTERRUPT) {
        uint16_t causes = rf_in16(ports, CAUSES);
        rf_out16(ports, CAUSES, causes);
        if (causes & LINK)
            reply |= rf_in8(ports, MEDIA_STATUS) & 4 ? RF_REPLY_LINK_DOWN : RF_REPLY_LINK_UP;
    }
    transmit();
    receive();
    return reply;
}

int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
{
    (void)b, (void)c;
    switch (operation) {
    case RF_INIT:
        return init();
    case RF_POLL:
        return poll(a);
    case RF_EXIT:
        rf_out16(ports, MASK, 0);
        rf_out8(ports, COMMAND, RESET);
        return 0;
    default:
        return operation == RF_NULL ? 0 : -RF_REFUSED_NOT_FOUND;
    }
}
