/*
 * The guest's half of 'cargo run -- bench --peer linux': the only program of a Linux guest, its
 * /init. It loads the modules in /mods, serves echo, discard and character generator like Ringfence
 * does, and measures the rows of Ringfence's 'bench', with one system call where 'bench' has one
 * upcall. It prints lines for the runner on its console:
 *
 *     @PEER user                          the program runs
 *     @PEER ready                         network card and disk are there
 *     @PEER row NAME BATCH UNIT VALUE     a sample
 *     @PEER done                          all is measured; the servers go on
 *     @PEER error TEXT
 *
 * Times are of CLOCK_MONOTONIC. With 'instructions=1' in the environment (the kernel's command line),
 * the guest runs under 'qemu -icount shift=0', where a nanosecond in which the CPU is not idle is an
 * instruction; rows have these. With 'filesystems=1', files are measured as well. A library is not needed but libc, linked statically.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * As Ringfence's bench: operations in a sample, samples, round trips. A sample of frames to send is
 * longer, because its end is read from a file.
 */
enum { EACH = 256, SENT = 16 * EACH, SAMPLES = 15, TRIPS = 101, MOST = 32, SMALL = 4096, LARGE = 65536 };
enum { FILE_BYTES = 4 << 20, FILES = 32, FILE_SAMPLES = 7 };

/* Whether to count instructions, and how many samples there are: counts hardly differ. */
static int counts, samples = SAMPLES, trips = TRIPS;

static void fail(const char *what)
{
	printf("@PEER error %s: %s\n", what, strerror(errno));
	fflush(stdout);
	reboot(RB_AUTOBOOT);
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void row(const char *name, int batch, const char *unit, double value)
{
	printf("@PEER row %s %d %s %.3f\n", name, batch, unit, value);
	fflush(stdout);
}

/*
 * Returns the seconds in which the CPU was idle since boot, to the nanosecond. Linux counts those in
 * which a task waits for a disk apart.
 */
static double idle(void)
{
	static const char *const fields[] = { ".idle_sleeptime", ".iowait_sleeptime" };
	char line[256];
	FILE *list = fopen("/proc/timer_list", "r");
	double sum = 0;
	int found = 0;
	if (!list)
		fail("/proc/timer_list");
	while (found < 2 && fgets(line, sizeof line, list)) {
		char *at = strstr(line, fields[found]);
		if (at && (at = strchr(at, ':')))
			sum += atof(at + 1) * 1e-9, found++;
	}
	fclose(list);
	if (found < 2)
		errno = ENOSYS, fail("the kernel does not count its idle time");
	return sum;
}

/* A stopwatch; where instructions are counted, it stands still while the CPU is idle. */
static double started_at, idle_at_start;

static void start(void)
{
	idle_at_start = counts ? idle() : 0;
	started_at = now();
}

static double elapsed(void)
{
	double stopped_at = now();
	return stopped_at - started_at - (counts ? idle() - idle_at_start : 0);
}

/* Reports 'count' operations in 'seconds': as a rate of 'factor' units each, or as instructions. */
static void rate(const char *name, int batch, const char *unit, double factor, long count, double seconds)
{
	if (counts)
		row(name, batch, "instructions", seconds * 1e9 / count);
	else
		row(name, batch, unit, factor * count / seconds);
}

static void trip(const char *name, double seconds)
{
	row(name, 1, counts ? "instructions" : "us", seconds * (counts ? 1e9 : 1e6));
}

/* ---- start ---- */

/* Loads the modules that /mods/order names, one a line. */
static void load_modules(void)
{
	char name[256], path[300];
	FILE *order = fopen("/mods/order", "r");
	if (!order)
		fail("/mods/order");
	while (fgets(name, sizeof name, order)) {
		name[strcspn(name, "\n")] = 0;
		snprintf(path, sizeof path, "/mods/%s", name);
		int file = open(path, O_RDONLY);
		if (file < 0 || (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST))
			fail(path);
		close(file);
	}
	fclose(order);
}

static struct sockaddr_in address(const char *text, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	inet_pton(AF_INET, text, &a.sin_addr);
	return a;
}

static void set_address(int s, unsigned long what, const char *interface, const char *text)
{
	struct ifreq request = { 0 };
	struct sockaddr_in a = address(text, 0);
	strcpy(request.ifr_name, interface);
	memcpy(&request.ifr_addr, &a, sizeof a);
	if (ioctl(s, what, &request))
		fail(text);
}

static void bring_up(int s, const char *interface)
{
	struct ifreq request = { 0 };
	strcpy(request.ifr_name, interface);
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(s, SIOCSIFFLAGS, &request))
		fail(interface);
}

static long read_number(const char *path)
{
	char text[64] = "";
	int file = open(path, O_RDONLY);
	if (file < 0)
		return -1;
	long n = read(file, text, sizeof text - 1);
	close(file);
	return n > 0 ? atol(text) : -1;
}

static void start_network(void)
{
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	bring_up(s, "lo");
	bring_up(s, "eth0");
	set_address(s, SIOCSIFADDR, "eth0", "10.0.2.15");
	set_address(s, SIOCSIFNETMASK, "eth0", "255.255.255.0");
	struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };
	struct sockaddr_in any = address("0.0.0.0", 0), router = address("10.0.2.2", 0);
	memcpy(&route.rt_dst, &any, sizeof any);
	memcpy(&route.rt_genmask, &any, sizeof any);
	memcpy(&route.rt_gateway, &router, sizeof router);
	if (ioctl(s, SIOCADDRT, &route))
		fail("route");
	close(s);
	for (int tries = 0; read_number("/sys/class/net/eth0/carrier") != 1; tries++) {
		if (tries == 500)
			fail("eth0 has no carrier");
		usleep(10000);
	}
}

/* ---- servers, as Ringfence's: echo over UDP, discard and characters over TCP ---- */

static void serve_echo(void)
{
	static char data[65536];
	struct sockaddr_in own = address("0.0.0.0", 7), from;
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	if (bind(s, (struct sockaddr *)&own, sizeof own))
		fail("echo");
	for (;;) {
		socklen_t len = sizeof from;
		ssize_t n = recvfrom(s, data, sizeof data, 0, (struct sockaddr *)&from, &len);
		if (n >= 0)
			sendto(s, data, n, 0, (struct sockaddr *)&from, len);
	}
}

static void serve_tcp(int port, int sends)
{
	static char data[65536];
	struct sockaddr_in own = address("0.0.0.0", port);
	int s = socket(AF_INET, SOCK_STREAM, 0);
	memset(data, 'x', sizeof data);
	if (bind(s, (struct sockaddr *)&own, sizeof own) || listen(s, 8))
		fail("server");
	for (;;) {
		int connection = accept(s, NULL, NULL);
		while ((sends ? send(connection, data, sizeof data, MSG_NOSIGNAL) : read(connection, data, sizeof data)) > 0)
			;
		close(connection);
	}
}

/* ---- frames ---- */

static int packets;
static uint8_t mac[6];

static void open_packets(void)
{
	struct ifreq request = { 0 };
	packets = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ARP));
	strcpy(request.ifr_name, "eth0");
	if (packets < 0 || ioctl(packets, SIOCGIFHWADDR, &request))
		fail("packets");
	memcpy(mac, request.ifr_hwaddr.sa_data, 6);
	struct sockaddr_ll own = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ARP),
				   .sll_ifindex = if_nametoindex("eth0") };
	struct timeval patience = { 5, 0 };
	if (bind(packets, (struct sockaddr *)&own, sizeof own))
		fail("packets");
	setsockopt(packets, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
}

/* An ARP request for the router's address (RFC 826), or a frame of an experimental type. */
static void make_frame(uint8_t *frame, int is_request)
{
	static const uint8_t head[] = { 8, 6, 0, 1, 8, 0, 6, 4, 0, 1 };
	static const uint8_t own[] = { 10, 0, 2, 15 }, router[] = { 10, 0, 2, 2 };
	memset(frame, 0, 60);
	memset(frame, 0xff, 6);
	memcpy(frame + 6, mac, 6);
	memcpy(frame + 12, head, sizeof head);
	memcpy(frame + 22, mac, 6);
	memcpy(frame + 28, own, 4);
	memcpy(frame + 38, router, 4);
	if (!is_request)
		frame[12] = 0x88, frame[13] = 0xb5;
}

/* Sends a batch with one system call. */
static void send_batch(uint8_t *frame, size_t len, int batch)
{
	struct iovec part = { frame, len };
	struct mmsghdr messages[MOST] = { 0 };
	if (batch == 1) {
		while (send(packets, frame, len, 0) < 0)
			if (errno != ENOBUFS && errno != EAGAIN)
				fail("send");
		return;
	}
	for (int i = 0; i < batch; i++)
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &part, .msg_iovlen = 1 };
	for (int sent = 0; sent < batch;) {
		int n = sendmmsg(packets, messages + sent, batch - sent, 0);
		if (n > 0)
			sent += n;
		else if (errno != ENOBUFS && errno != EAGAIN)
			fail("sendmmsg");
	}
}

/* A sample ends when the card has all frames. */
static void measure_tx(const char *name, size_t len, int batch)
{
	static uint8_t frame[1514];
	int count = counts ? EACH : SENT;
	make_frame(frame, 0);
	for (int sample = 0; sample <= samples; sample++) {
		long before = read_number("/sys/class/net/eth0/statistics/tx_packets");
		start();
		for (int i = 0; i < count / batch; i++)
			send_batch(frame, len, batch);
		/* Waiting for the file would cost instructions; the card has all when it is asked. */
		double seconds = counts ? elapsed() : 0, sent = now();
		while (read_number("/sys/class/net/eth0/statistics/tx_packets") < before + count) {
			if (now() - sent > 5)
				fail("the card does not send");
		}
		if (sample)
			rate(name, batch, "frames/s", 1, count, counts ? seconds : elapsed());
	}
}

static void receive_answers(int count)
{
	static uint8_t in[2048];
	while (count > 0) {
		ssize_t n = recv(packets, in, sizeof in, 0);
		if (n < 0)
			fail("the router does not answer");
		if (n >= 42 && in[21] == 2)
			count--;
	}
}

static void measure_rx(int batch)
{
	uint8_t frame[60];
	make_frame(frame, 1);
	for (int sample = 0; sample <= samples; sample++) {
		start();
		for (int i = 0; i < EACH / batch; i++) {
			send_batch(frame, sizeof frame, batch);
			receive_answers(batch);
		}
		double seconds = elapsed();
		if (sample)
			rate("nic/rx", batch, "frames/s", 1, EACH, seconds);
	}
	for (int i = 0; batch == 1 && i < trips; i++) {
		start();
		send_batch(frame, sizeof frame, 1);
		receive_answers(1);
		trip("nic/rtt", elapsed());
	}
}

/* Round trips of ICMP echo requests to the router (RFC 792), through the network stack. */
static void measure_echo(void)
{
	enum { ECHO_BYTES = 56, HEADER = 8, IP_HEADER = 20 };
	struct sockaddr_in router = address("10.0.2.2", 0);
	struct timeval patience = { 5, 0 };
	int s = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	if (s < 0)
		fail("an ICMP socket");
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	for (int i = 0; i <= trips; i++) {
		uint8_t packet[HEADER + ECHO_BYTES] = { 8, 0, 0, 0, 'R', 'F', i >> 8, i }, in[2048];
		unsigned sum = 0;
		start();
		for (size_t at = 0; at < sizeof packet; at += 2)
			sum += packet[at] << 8 | packet[at + 1];
		sum = (sum & 0xffff) + (sum >> 16);
		sum = ~(sum + (sum >> 16));
		packet[2] = sum >> 8, packet[3] = sum;
		if (sendto(s, packet, sizeof packet, 0, (struct sockaddr *)&router, sizeof router) < 0)
			fail("an echo request");
		do {
			if (recv(s, in, sizeof in, 0) < IP_HEADER + HEADER)
				fail("the router does not answer an echo request");
		} while (in[IP_HEADER] != 0 || memcmp(in + IP_HEADER + 4, packet + 4, 4));
		double seconds = elapsed();
		if (i)
			trip("icmp/rtt", seconds);
	}
	close(s);
}

/* ---- the disk ---- */

/* Returns the disk with this SCSI target: Linux names disks in the order in which it gets to know them. */
static const char *disk_of(int target)
{
	static char device[] = "/dev/sda";
	for (int tries = 0; tries < 3000; tries++) {
		for (char letter = 'a'; letter <= 'h'; letter++) {
			char link[] = "/sys/block/sd?/device", to[256] = "";
			int found;
			strchr(link, '?')[0] = letter;
			if (readlink(link, to, sizeof to - 1) < 0 || !strrchr(to, '/'))
				continue;
			if (sscanf(strrchr(to, '/'), "/%*d:%*d:%d:%*d", &found) == 1 && found == target) {
				device[sizeof device - 2] = letter;
				return device;
			}
		}
		usleep(10000);
	}
	fail("a disk");
	return NULL;
}

static int disk;
static uint64_t disk_bytes, random_state = 0x2545f4914f6cdd1d;

static uint64_t place(size_t len, int is_random, long number)
{
	uint64_t places = disk_bytes / len;
	if (is_random) {
		random_state ^= random_state << 13;
		random_state ^= random_state >> 7;
		random_state ^= random_state << 17;
	}
	return (is_random ? random_state % places : (uint64_t)number % places) * len;
}

/* One transfer after the other, one system call for each. */
static double one_by_one(char *buffer, int writes)
{
	start();
	for (int i = 0; i < EACH; i++) {
		uint64_t at = place(SMALL, 1, i);
		if ((writes ? pwrite(disk, buffer, SMALL, at) : pread(disk, buffer, SMALL, at)) != SMALL)
			fail(writes ? "write" : "read");
	}
	return elapsed();
}

/* Up to 'depth' transfers are under way; as many as can be are submitted with one system call. */
static double at_once(char *buffer, int writes, size_t len, int is_random, int depth)
{
	aio_context_t context = 0;
	struct iocb blocks[MOST], *list[MOST];
	struct io_event events[MOST];
	int free_blocks[MOST], free_count = depth;
	long begun = 0, done = 0;
	if (syscall(SYS_io_setup, depth, &context))
		fail("io_setup");
	memset(blocks, 0, sizeof blocks);
	for (int i = 0; i < depth; i++)
		free_blocks[i] = i;
	start();
	while (done < EACH) {
		int count = 0;
		for (; free_count && begun < EACH; begun++) {
			int i = free_blocks[--free_count];
			blocks[i].aio_data = i;
			blocks[i].aio_fildes = disk;
			blocks[i].aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
			blocks[i].aio_buf = (uintptr_t)(buffer + len * i);
			blocks[i].aio_nbytes = len;
			blocks[i].aio_offset = place(len, is_random, begun);
			list[count++] = &blocks[i];
		}
		for (int sent = 0; sent < count;) {
			long n = syscall(SYS_io_submit, context, (long)(count - sent), list + sent);
			if (n <= 0)
				fail("io_submit");
			sent += n;
		}
		long n = syscall(SYS_io_getevents, context, 1L, (long)depth, events, NULL);
		for (long i = 0; i < n; i++) {
			if (events[i].res != (long long)len)
				fail(writes ? "write" : "read");
			free_blocks[free_count++] = events[i].data;
		}
		done += n > 0 ? n : 0;
	}
	double seconds = elapsed();
	syscall(SYS_io_destroy, context);
	return seconds;
}

static void measure_disk(void)
{
	static const char *const one[] = { "scsi/read4k/depth1", "scsi/write4k/depth1" };
	static const char *const many[] = { "scsi/read4k/depth32", "scsi/write4k/depth32" };
	static const char *const large[] = { "scsi/seq", "scsi/seq-write" };
	static const char *const units[] = { "reads/s", "writes/s" };
	const char *device = disk_of(0);
	for (int tries = 0; (disk = open(device, O_RDWR | O_DIRECT)) < 0; tries++) {
		if (tries == 3000)
			fail(device);
		usleep(10000);
	}
	disk_bytes = lseek(disk, 0, SEEK_END);
	char *buffer;
	if (posix_memalign((void **)&buffer, SMALL, MOST * LARGE))
		fail("memory");
	memset(buffer, 0x52, MOST * LARGE);
	for (int writes = 0; writes < 2; writes++) {
		for (int sample = 0; sample <= samples; sample++) {
			double alone = one_by_one(buffer, writes), deep = at_once(buffer, writes, SMALL, 1, 32);
			double sequential = at_once(buffer, writes, LARGE, 0, 8);
			if (!sample)
				continue;
			rate(one[writes], 1, units[writes], 1, EACH, alone);
			rate(many[writes], 32, units[writes], 1, EACH, deep);
			rate(large[writes], 8, "MB/s", LARGE / 1e6, EACH, sequential);
		}
	}
}

/* ---- files: a FAT on the second disk, an ext4 on the third ---- */

static void mount_disk(const char *device, const char *at, const char *type, unsigned long flags)
{
	mkdir(at, 0755);
	for (int tries = 0; mount(device, at, type, flags, NULL); tries++) {
		if (tries == 3000 || errno != ENOENT)
			fail(at);
		usleep(10000);
	}
}

/* Empties the kernel's cache, so that files are read from the disk. */
static void forget_files(void)
{
	int file = open("/proc/sys/vm/drop_caches", O_WRONLY);
	sync();
	if (file < 0 || write(file, "1", 1) != 1)
		fail("drop_caches");
	close(file);
}

static void read_file(const char *name, const char *path, char *buffer)
{
	for (int sample = 0; sample <= FILE_SAMPLES; sample++) {
		int file = open(path, O_RDONLY), pieces = 0;
		ssize_t n;
		if (file < 0)
			fail(path);
		forget_files();
		start();
		while ((n = read(file, buffer, LARGE)) > 0)
			pieces++;
		double seconds = elapsed();
		if (n || pieces != FILE_BYTES / LARGE)
			fail(path);
		close(file);
		if (sample)
			rate(name, 1, "MB/s", LARGE / 1e6, pieces, seconds);
	}
}

/* Writes a file. Its data is on the disk before the time ends. */
static void write_file(const char *name, const char *path, char *buffer)
{
	for (int sample = 0; sample <= FILE_SAMPLES; sample++) {
		int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
		if (file < 0)
			fail(path);
		sync();
		start();
		for (int at = 0; at < FILE_BYTES; at += LARGE)
			if (write(file, buffer, LARGE) != LARGE)
				fail(path);
		if (syncfs(file))
			fail(path);
		double seconds = elapsed();
		close(file);
		if (sample)
			rate(name, 1, "MB/s", LARGE / 1e6, FILE_BYTES / LARGE, seconds);
	}
}

/* Makes files, describes them, and removes them. */
static void name_files(const char *name, const char *folder)
{
	char path[64];
	struct stat status;
	for (int sample = 0; sample <= FILE_SAMPLES; sample++) {
		int root = open(folder, O_RDONLY);
		sync();
		start();
		for (int step = 0; step < 3; step++) {
			for (int i = 0; i < FILES; i++) {
				snprintf(path, sizeof path, "%s/file-%d", folder, i);
				int file = step ? 0 : open(path, O_WRONLY | O_CREAT, 0644);
				if (file < 0 || (step == 0 && close(file)) || (step == 1 && stat(path, &status)) ||
				    (step == 2 && unlink(path)))
					fail(path);
			}
		}
		if (syncfs(root))
			fail(folder);
		double seconds = elapsed();
		close(root);
		if (sample)
			rate(name, 1, "operations/s", 1, 3 * FILES, seconds);
	}
}

static void measure_files(void)
{
	char *buffer;
	if (posix_memalign((void **)&buffer, SMALL, LARGE))
		fail("memory");
	memset(buffer, 0x52, LARGE);
	mount_disk(disk_of(1), "/fat", "vfat", 0);
	mount_disk(disk_of(2), "/ext", "ext4", MS_RDONLY);
	write_file("fs/fat/write", "/fat/bench", buffer);
	read_file("fs/fat/read", "/fat/bench", buffer);
	name_files("fs/fat/names", "/fat");
	read_file("fs/ext/read", "/ext/bench", buffer);
	if (umount("/fat") || umount("/ext"))
		fail("umount");
}

int main(void)
{
	puts("@PEER user");
	fflush(stdout);
	counts = getenv("instructions") != NULL;
	if (counts)
		samples = 3, trips = 11;
	mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	load_modules();
	start_network();
	puts("@PEER ready");
	fflush(stdout);
	if (!fork())
		serve_echo();
	if (!fork())
		serve_tcp(9, 0);
	if (!fork())
		serve_tcp(19, 1);
	open_packets();
	static const int batches[] = { 1, 8, 32 };
	for (int i = 0; i < 3; i++)
		measure_tx("nic/tx", 60, batches[i]);
	for (int i = 0; i < 3; i++)
		measure_tx("nic/tx-1514", 1514, batches[i]);
	for (int i = 0; i < 3; i++)
		measure_rx(batches[i]);
	measure_echo();
	measure_disk();
	if (getenv("filesystems"))
		measure_files();
	puts("@PEER done");
	fflush(stdout);
	for (;;)
		pause();
}
