// SPDX-License-Identifier: GPL-2.0
/* The module ublk_bpf: /dev/ublk-bpf-control. */
#include <linux/capability.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "core.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

static void get_info(struct ublk_bpf_disk *disk, struct ublk_bpf_info *info)
{
	int i;

	mutex_lock(&disk->lock);
	info->flags = disk->flags | (disk->ops ? UBLK_BPF_ATTACHED : 0) |
		      (disk->lower_dead ? UBLK_BPF_LOWER_DEAD : 0);
	info->range_shift = disk->range_shift;
	info->files = 0;
	for (i = 0; i < UBLK_BPF_FILES; i++)
		info->files |= disk->slots[i] ? 1U << i : 0;
	info->major = info->minor = info->lower_major = info->lower_minor = 0;
	if (disk->state == UBLK_BPF_LIVE) {
		info->major = MAJOR(disk_devt(disk->gendisk));
		info->minor = MINOR(disk_devt(disk->gendisk));
		info->lower_major = MAJOR(disk->lower->bd_dev);
		info->lower_minor = MINOR(disk->lower->bd_dev);
	}
	mutex_unlock(&disk->lock);
}

static void get_stats(struct ublk_bpf_disk *disk, struct ublk_bpf_stats *s)
{
	u32 id = s->id;
	int cpu;

	memset(s, 0, sizeof(*s));
	s->id = id;
	for_each_possible_cpu (cpu) {
		const struct ublk_bpf_counts *c = per_cpu_ptr(disk->counts, cpu);

		s->reads += c->hits[UBLK_BPF_READ];
		s->writes += c->hits[UBLK_BPF_WRITE];
		s->read_bytes += c->bytes[UBLK_BPF_READ];
		s->write_bytes += c->bytes[UBLK_BPF_WRITE];
		s->misses += c->misses;
		s->zeroed += c->zeroed;
		s->splits += c->splits;
		s->punts += c->punts;
		s->again += c->again;
		s->refused += c->refused;
		s->failed += c->failed;
	}
	s->hits = s->reads + s->writes;
	s->drains = atomic64_read(&disk->drains);
}

static int drain(struct ublk_bpf_disk *disk, const struct ublk_bpf_drain *arg)
{
	if (!arg->length || (arg->length != U64_MAX && arg->length > U64_MAX - arg->offset))
		return -EINVAL;
	if (arg->flags & ~UBLK_BPF_DRAIN_NOWAIT)
		return -EINVAL;
	if (arg->flags & UBLK_BPF_DRAIN_NOWAIT)
		return ublk_bpf_is_drained(disk, arg->offset, arg->length) ? 0 : -EAGAIN;
	return ublk_bpf_drain_range(disk, arg->offset, arg->length, true);
}

/* Each call's struct begins with the disk's id, and is not larger than this. */
union argument {
	u32 id;
	struct ublk_bpf_create create;
	struct ublk_bpf_destroy destroy;
	struct ublk_bpf_file file;
	struct ublk_bpf_drain drain;
	struct ublk_bpf_info info;
	struct ublk_bpf_stats stats;
};

static int call_disk(unsigned int cmd, union argument *arg)
{
	struct ublk_bpf_disk *disk = ublk_bpf_disk_get(arg->id);
	int ret = 0;

	if (!disk)
		return -ENODEV;
	switch (cmd) {
	case UBLK_BPF_DESTROY:
		ret = arg->destroy.reserved ? -EINVAL : ublk_bpf_disk_destroy(disk);
		break;
	case UBLK_BPF_SET_FILE:
		ret = ublk_bpf_slot_set(disk, &arg->file);
		break;
	case UBLK_BPF_GET_FILE:
		ret = ublk_bpf_slot_get(disk, &arg->file);
		break;
	case UBLK_BPF_DRAIN:
		ret = drain(disk, &arg->drain);
		break;
	case UBLK_BPF_INFO:
		get_info(disk, &arg->info);
		break;
	case UBLK_BPF_STATS:
		get_stats(disk, &arg->stats);
		break;
	default:
		ret = -ENOTTY;
	}
	ublk_bpf_disk_put(disk);
	return ret;
}

static bool known(unsigned int cmd)
{
	switch (cmd) {
	case UBLK_BPF_CREATE:
	case UBLK_BPF_DESTROY:
	case UBLK_BPF_SET_FILE:
	case UBLK_BPF_GET_FILE:
	case UBLK_BPF_DRAIN:
	case UBLK_BPF_INFO:
	case UBLK_BPF_STATS:
		return true;
	}
	return false;
}

static long control_ioctl(struct file *file, unsigned int cmd, unsigned long user)
{
	void __user *ptr = (void __user *)user;
	union argument arg;
	int ret;

	if (cmd == UBLK_BPF_GET_VERSION)
		return UBLK_BPF_VERSION;
	if (!known(cmd))
		return -ENOTTY;
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (copy_from_user(&arg, ptr, _IOC_SIZE(cmd)))
		return -EFAULT;
	ret = cmd == UBLK_BPF_CREATE ? ublk_bpf_disk_create(&arg.create) : call_disk(cmd, &arg);
	if (!ret && _IOC_DIR(cmd) & _IOC_READ && copy_to_user(ptr, &arg, _IOC_SIZE(cmd)))
		ret = -EFAULT;
	return ret;
}

static const struct file_operations control_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = control_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice control = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ublk-bpf-control",
	.fops = &control_fops,
	.mode = 0600,
};

static int __init ublk_bpf_init(void)
{
	int ret = ublk_bpf_aio_cache_init();

	if (ret)
		return ret;
	ret = ublk_bpf_struct_ops_init();
	if (ret)
		goto cache;
	ret = misc_register(&control);
	if (ret)
		goto cache;
	return 0;

cache:
	ublk_bpf_aio_cache_exit();
	return ret;
}

static void __exit ublk_bpf_exit(void)
{
	misc_deregister(&control);
	ublk_bpf_aio_cache_exit();
}

module_init(ublk_bpf_init);
module_exit(ublk_bpf_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Disk over a ublk device that serves requests by BPF from files");
