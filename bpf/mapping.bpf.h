/* SPDX-License-Identifier: GPL-2.0 */
/*
 * mapping.bpf.h - the lookup of a BPF program in the mapping table. Its caller holds the range's counter from
 * before the lookup until the I/O is over, so what is found here stays true that long (daemon/fastmap.c has
 * the proof, for all readers).
 */
#ifndef BPF_MAPPING_BPF_H
#define BPF_MAPPING_BPF_H

#include "mapping.h"

/* Both are made by the daemon, of the size that --cache-size gives. */

/*
 * Slice number -> slot number. A hint, as an element that is deleted is used again at once, and whoever has
 * just found it then reads another slice's number: the slot's own header decides.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u32);
} slices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fastmap_slot);
} slots SEC(".maps");

/* Set before the load. */
const volatile __u32 mapping_cluster_bits = 16;

/* Slot numbers, by slice. Hints, too. */
#define MAPPING_LAST 64
volatile __u32 mapping_last[MAPPING_LAST];

struct mapping_hit {
	__u64 host; /* byte offset in the file; undefined for zero */
	__u32 len; /* bytes from the request's start that this covers */
	__u32 file;
	bool zero;
};

static __always_inline __u64 mapping_load(const mapping_u64 *from)
{
	return *(const volatile mapping_u64 *)from; /* once, whole, in program order */
}

/* The bound is checked where the verifier looks for it: on what is used. */
static __always_inline __u64 mapping_word(const struct fastmap_slot *s, __u32 i)
{
	barrier_var(i);
	return i < FASTMAP_SLICE_CLUSTERS ? mapping_load(&s->word[i]) : 0;
}

/* The slot, if it is the slice's. */
static __always_inline struct fastmap_slot *mapping_try(__u32 n, __u64 slice)
{
	struct fastmap_slot *s = bpf_map_lookup_elem(&slots, &n);

	return s && mapping_load(&s->slice_plus_1) == slice + 1 ? s : 0;
}

/* Where it was the last time comes first: a third of what the hash map costs. */
static __always_inline struct fastmap_slot *mapping_slot(__u64 slice)
{
	volatile __u32 *last = &mapping_last[slice % MAPPING_LAST];
	struct fastmap_slot *s = mapping_try(*last, slice);
	__u32 *at, n;

	if (!s) {
		at = bpf_map_lookup_elem(&slices, &slice);
		if (!at)
			return 0;
		n = *(volatile __u32 *)at;
		s = mapping_try(n, slice);
		if (!s)
			return 0;
		*last = n;
	}
	if (!mapping_load(&s->referenced))
		*(volatile mapping_u64 *)&s->referenced = 1;
	return s;
}

/*
 * What the first bytes of [offset, offset + len), which lies within one slice, are: one extent over all the
 * clusters that follow each other on the host as well. False: unknown, or not writable.
 */
static __always_inline bool mapping_lookup(__u64 offset, __u32 len, bool write, struct mapping_hit *hit)
{
	__u32 bits = mapping_cluster_bits;
	__u64 cluster = offset >> bits, size = 1ull << bits, skip = offset & (size - 1), step, mask, word,
	      got = size - skip;
	struct fastmap_slot *s = mapping_slot(cluster / FASTMAP_SLICE_CLUSTERS);
	__u32 i = cluster % FASTMAP_SLICE_CLUSTERS;
	int n;

	if (!s)
		return false;
	/* a read may go on from a writable cluster to one that is not */
	mask = write ? ~0ull : ~FASTMAP_WRITABLE;
	word = mapping_word(s, i) & mask;
	if (!word || (write && !(word & FASTMAP_WRITABLE)))
		return false;
	hit->zero = (word & FASTMAP_KIND) == FASTMAP_ZERO;
	hit->host = (word & FASTMAP_HOST) + skip;
	hit->file = (word & FASTMAP_FILE) >> FASTMAP_FILE_SHIFT;
	hit->len = len;
	step = hit->zero ? 0 : size;
	if (got >= len)
		goto out;
	/* an iterator: 6.12's verifier looks at each turn of a plain loop, until it has seen a million */
	bpf_for(n, 1, FASTMAP_SLICE_CLUSTERS + 1)
	{
		word += step;
		if ((mapping_word(s, i + n) & mask) != word) { /* also behind the slice's end */
			hit->len = got;
			break;
		}
		got += size;
		if (got >= len)
			break;
	}
out:
	return mapping_load(&s->slice_plus_1) == cluster / FASTMAP_SLICE_CLUSTERS + 1;
}

#endif
