// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * inner-init.c - PID 1 of the QEMU guest of 30-qemu-guest.py, whose virtio disks are ublk devices.
 *
 * Loads /modules/0.ko, 1.ko, ..., finds its disks by serial number, follows /script line by line and switches
 * the machine off. Its last line on the console is "inner: done", or "inner: FAILED: ..." at the first thing
 * that is not as it should be. Commands, numbers in bytes, all I/O direct unless the command says otherwise:
 *
 *   disk SERIAL            the lines below are about this disk
 *   size N                 it has N bytes
 *   readonly               it says that it cannot be written, and cannot
 *   check OFF LEN SALT     holds the pattern with this salt (salt 0: zeroes)
 *   write OFF LEN SALT     writes the pattern; cached OFF LEN SALT does so through the page cache
 *   discard OFF LEN        BLKDISCARD
 *   zero OFF LEN           BLKZEROOUT
 *   sync                   fsync, which is a FLUSH of the disk
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHUNK (1 << 20)
#define WAIT_MS 60000 /* for a disk to appear */

static uint64_t buf[CHUNK / 8] __attribute__((aligned(4096)));
static char disk[32]; /* path of the current one */
static int direct = -1, cached = -1;

static void off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	_exit(1); /* the kernel panics, which ends QEMU, too */
}

static void __attribute__((format(printf, 1, 2))) fail(const char *fmt, ...)
{
	va_list args;

	printf("inner: FAILED: ");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
	off();
}

static void start(void)
{
	if (mkdir("/dev", 0755) < 0 && errno != EEXIST)
		_exit(1);
	mkdir("/sys", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	if (!freopen("/dev/console", "w", stdout))
		_exit(1);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("inner: started\n");
}

static void load_modules(void)
{
	char path[32];
	int fd;

	for (int i = 0;; i++) {
		snprintf(path, sizeof(path), "/modules/%d.ko", i);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			break;
		if (syscall(SYS_finit_module, fd, "", 0))
			fail("%s: %s", path, strerror(errno));
		close(fd);
	}
}

static int has_serial(char letter, const char *want)
{
	char path[64], serial[32] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/sys/block/vd%c/serial", letter);
	f = fopen(path, "r");
	if (!f)
		return 0;
	if (!fgets(serial, sizeof(serial), f))
		serial[0] = 0;
	fclose(f);
	serial[strcspn(serial, "\n")] = 0;
	return !strcmp(serial, want);
}

static void open_disk(void)
{
	int mode = O_RDWR | O_CLOEXEC;

	if (direct >= 0) {
		close(direct);
		close(cached);
	}
	direct = open(disk, mode | O_DIRECT);
	if (direct < 0 && (errno == EACCES || errno == EROFS || errno == EPERM)) {
		mode = O_RDONLY | O_CLOEXEC;
		direct = open(disk, mode | O_DIRECT);
	}
	cached = open(disk, mode);
	if (direct < 0 || cached < 0)
		fail("%s: %s", disk, strerror(errno));
}

static void use_disk(const char *serial)
{
	for (int ms = 0; ms < WAIT_MS; ms += 10) {
		for (char letter = 'a'; letter <= 'd'; letter++) {
			if (!has_serial(letter, serial))
				continue;
			snprintf(disk, sizeof(disk), "/dev/vd%c", letter);
			open_disk();
			return;
		}
		usleep(10000);
	}
	fail("no disk %s", serial);
}

/* The same in 30-qemu-guest.py: each word depends on where it lies and on the salt. */
static uint64_t word(uint64_t at, uint64_t salt)
{
	return salt ? (at + salt) * 0x9e3779b97f4a7c15u : 0;
}

static size_t chunk(uint64_t len)
{
	return len < CHUNK ? len : CHUNK;
}

static void check(uint64_t at, uint64_t len, uint64_t salt)
{
	for (size_t n; len; at += n, len -= n) {
		n = chunk(len);
		if (pread(direct, buf, n, at) != (ssize_t)n)
			fail("%s: read of %zu at %llu: %s", disk, n, (unsigned long long)at, strerror(errno));
		for (size_t i = 0; i < n / 8; i++)
			if (buf[i] != word(at + i * 8, salt))
				fail("%s: salt %llu: at %llu is %016llx", disk, (unsigned long long)salt,
				     (unsigned long long)at + i * 8, (unsigned long long)buf[i]);
	}
}

static void fill(int fd, uint64_t at, uint64_t len, uint64_t salt)
{
	for (size_t n; len; at += n, len -= n) {
		n = chunk(len);
		for (size_t i = 0; i < n / 8; i++)
			buf[i] = word(at + i * 8, salt);
		if (pwrite(fd, buf, n, at) != (ssize_t)n)
			fail("%s: write of %zu at %llu: %s", disk, n, (unsigned long long)at,
			     strerror(errno));
	}
}

static void range_ioctl(unsigned long request, const char *what, uint64_t at, uint64_t len)
{
	uint64_t range[2] = { at, len };

	if (ioctl(direct, request, range))
		fail("%s: %s of %llu at %llu: %s", disk, what, (unsigned long long)len,
		     (unsigned long long)at, strerror(errno));
}

static void has_size(uint64_t want)
{
	uint64_t size = 0;

	if (ioctl(direct, BLKGETSIZE64, &size) || size != want)
		fail("%s: %llu bytes", disk, (unsigned long long)size);
}

static void is_readonly(void)
{
	int ro = 0, fd;

	if (ioctl(direct, BLKROGET, &ro) || !ro)
		fail("%s: is not read-only", disk);
	ro = 0;
	ioctl(direct, BLKROSET, &ro); /* the kernel may forget it, the device must not */
	fd = open(disk, O_WRONLY | O_DIRECT | O_CLOEXEC);
	if (fd >= 0 && pwrite(fd, buf, 512, 0) >= 0)
		fail("%s: read-only, but was written", disk);
	if (fd >= 0)
		close(fd);
}

static void obey(const char *line)
{
	unsigned long long at = 0, len = 0, salt = 0;
	char what[16] = "", serial[32] = "";

	sscanf(line, "%15s %31s", what, serial);
	sscanf(line, "%*s %llu %llu %llu", &at, &len, &salt);
	if (!strcmp(what, "disk"))
		use_disk(serial);
	else if (!strcmp(what, "size"))
		has_size(at);
	else if (!strcmp(what, "readonly"))
		is_readonly();
	else if (!strcmp(what, "check"))
		check(at, len, salt);
	else if (!strcmp(what, "write"))
		fill(direct, at, len, salt);
	else if (!strcmp(what, "cached"))
		fill(cached, at, len, salt);
	else if (!strcmp(what, "discard"))
		range_ioctl(BLKDISCARD, "discard", at, len);
	else if (!strcmp(what, "zero"))
		range_ioctl(BLKZEROOUT, "zero", at, len);
	else if (strcmp(what, "sync"))
		fail("what is \"%s\"?", line);
	else if (fsync(cached))
		fail("%s: fsync: %s", disk, strerror(errno));
}

int main(void)
{
	char line[128];
	FILE *script;
	int lines = 0;

	start();
	load_modules();
	script = fopen("/script", "r");
	if (!script)
		fail("no script");
	for (; fgets(line, sizeof(line), script); lines++)
		obey(line);
	fclose(script);
	printf("inner: done, %d lines\n", lines);
	off();
}
