/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fastmap.c - the mapping table and its coherence protocol (DESIGN sections 3 and 4).
 *
 * Owns the slots (decoded words of 512 clusters each), the readers' range counters and the list of drains in
 * progress. Only the metadata thread stores words, slot headers and phases; a reader stores its own counters.
 *
 * Readers and withdrawals
 *   enter:    p = phase; counter[p]++; FENCE; retry if the phase changed; only then look at words.
 *   leave:    counter[p]--; FENCE; if somebody drains this bucket, wake the metadata thread.
 *   withdraw: words = 0; FENCE; nothing counted in either phase -> drained. Otherwise flip the phase of the
 * bucket and wait until the old phase counts nothing. Why that is enough: of the two fences, the reader's or
 * the withdrawer's comes first. If the withdrawer's, the reader sees 0 words. If the reader's, the withdrawer
 * sees it counted: in the phase it flips away from, as a reader that found the new phase (an acquire load of
 * a value stored after the withdrawer's fence) has its own fence after it. Each counter has one writer, so
 * reading it as 0 once proves that every earlier holder has left; no snapshot of all readers is needed. New
 * readers count in the new phase: a stream of hits cannot starve a drain.
 *
 * Drains of one bucket do not overlap: a flip may only happen when the phase it makes current for new readers
 * is not itself being waited for. So every withdrawal that has to wait takes a stamp from one global clock. A
 * flip covers all stamps given out before it; a bucket whose drain ended with a stamp above the flip's still
 * wanted is flipped again. A withdrawal is drained when every bucket of its range is done up to its stamp.
 * Each word that is zeroed starts a drain, so a withdrawal that finds only zeroes, and no drain running,
 * waits for nobody: as a rule the first write to a cluster, while hits on its neighbours are in flight.
 *
 * Slots: a slice lives in any slot; an index says where (slice_index.c here, a BPF hash map for the peer).
 * The index is a hint, the slot's header decides. A victim leaves the index, its header and words are zeroed,
 * and it counts as dying until its old slice's bucket is drained: a reader that saw the old header is counted
 * there. Only then does it get a new header, so a reader that saw the header it wants reads words of that
 * slice only.
 *
 * The peer, the module of engine `kernel`, reads the same slots and follows the same protocol with counters
 * of its own. A drain is over when both it and the buckets here are. For a withdrawal it is asked only if a
 * word has really become 0: a range of which nothing was published can have no hits but those of an earlier
 * withdrawal, whose ticket (a stamp, too) its buckets remember. Tickets are answered in order, so one number
 * says which are done.
 *
 * Nothing here outlives the process; the peer's memory is given up by whoever made it.
 */
#include "fastmap.h"
#include "memory.h"
#include "qcow2/op.h"
#include "slice_index.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define NO_SLOT SLICE_INDEX_NONE
#define MIN_SLOTS 4u

/* Read by every reader, written by the metadata thread on a drain. */
struct bucket {
	uint32_t phase; /* 0 or 1 */
	uint32_t draining;
};

/* A bucket's drains; metadata thread only. Stamps of the global clock. */
struct drains {
	uint64_t done; /* every stamp up to this one is drained */
	uint64_t flipped; /* the running drain covers these stamps */
	uint64_t wanted; /* the highest stamp somebody waits for */
	uint64_t ticket; /* the last one of the peer; 0 or done: none of its hits uses a withdrawn word */
};

/* counter[phase]; one line holds eight buckets of one reader, never of two. */
struct counter {
	uint32_t held[2];
};

/* What the metadata thread knows of a slot. */
struct place {
	enum { PLACE_FREE, PLACE_USED, PLACE_DYING } state;
	uint32_t next; /* free, dying: the next one of that state, or NO_SLOT */
	uint64_t slice; /* used: whose; dying: whose it was */
	uint64_t stamp; /* dying: free when the slice's bucket is done up to this */
	uint64_t ticket; /* dying: and the peer up to this */
};

/* A withdrawal that waits: buckets [next, end) modulo FASTMAP_BUCKETS are still to be checked. */
struct pending_drain {
	struct op *waiter;
	uint64_t stamp, ticket;
	uint64_t next, end;
	struct pending_drain *link;
};

struct fastmap {
	struct fastmap_slot *slot; /* mmap or the peer's: one line-aligned array */
	struct slice_index index;
	struct counter *counter; /* [reader][bucket] */
	struct bucket *bucket;
	unsigned slots, readers, cluster_bits;
	struct fastmap_peer peer; /* .slot NULL: none */
	uint64_t peer_done; /* ticket; any thread */
	bool off; /* nothing is published */
	/* metadata thread */
	struct place *place; /* of each slot */
	uint32_t free, dying; /* the first one */
	unsigned dead; /* number of those that are dying */
	unsigned hand; /* of the eviction clock */
	struct drains *drains;
	struct pending_drain *pending;
	uint64_t clock;
	void (*wake)(void *ctx);
	void *wake_ctx;
	uint64_t used, withdrawals, waits; /* statistics, read by any thread */
};

bool fastmap_test_skip_drain;

static void full_fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void count(uint64_t *counter, int64_t by)
{
	__atomic_store_n(counter, *counter + (uint64_t)by, __ATOMIC_RELAXED);
}

static unsigned bucket_of(uint64_t slice)
{
	return slice & (FASTMAP_BUCKETS - 1);
}

static uint64_t slice_of(const struct fastmap *f, uint64_t guest)
{
	return (guest >> f->cluster_bits) / FASTMAP_SLICE_CLUSTERS;
}

/* ---- life ---- */

static void *map_zeroed(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	memory_fill(p, size); /* a hit must not wait for memory */
	return p;
}

unsigned fastmap_slots(uint64_t cache_bytes)
{
	uint64_t slots = cache_bytes / sizeof(struct fastmap_slot);

	return slots < MIN_SLOTS ? MIN_SLOTS : slots > UINT32_MAX / 4 ? UINT32_MAX / 4 : (unsigned)slots;
}

static void put_free(struct fastmap *f, uint32_t slot)
{
	f->place[slot].state = PLACE_FREE;
	f->place[slot].next = f->free;
	f->free = slot;
}

int fastmap_new(struct fastmap **out, unsigned cluster_bits, uint64_t cache_bytes, unsigned readers,
		const struct fastmap_peer *peer)
{
	struct fastmap *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	if (peer)
		f->peer = *peer;
	f->slots = fastmap_slots(cache_bytes);
	f->readers = readers;
	f->cluster_bits = cluster_bits;
	f->slot = peer ? peer->slot : map_zeroed(f->slots * sizeof(*f->slot));
	f->counter = map_zeroed((size_t)readers * FASTMAP_BUCKETS * sizeof(*f->counter));
	f->bucket = map_zeroed(FASTMAP_BUCKETS * sizeof(*f->bucket));
	f->place = calloc(f->slots, sizeof(*f->place));
	f->drains = calloc(FASTMAP_BUCKETS, sizeof(*f->drains));
	if (!f->slot || !f->counter || !f->bucket || !f->place || !f->drains ||
	    slice_index_init(&f->index, f->slots)) {
		fastmap_free(f);
		return -ENOMEM;
	}
	f->dying = f->free = NO_SLOT;
	for (unsigned i = 0; i < f->slots; i++)
		put_free(f, i);
	*out = f;
	return 0;
}

void fastmap_set_cluster_bits(struct fastmap *f, unsigned cluster_bits)
{
	f->cluster_bits = cluster_bits;
}

void fastmap_free(struct fastmap *f)
{
	if (f->slot && !f->peer.slot)
		munmap(f->slot, f->slots * sizeof(*f->slot));
	if (f->counter)
		munmap(f->counter, (size_t)f->readers * FASTMAP_BUCKETS * sizeof(*f->counter));
	if (f->bucket)
		munmap(f->bucket, FASTMAP_BUCKETS * sizeof(*f->bucket));
	slice_index_exit(&f->index);
	free(f->place);
	free(f->drains);
	free(f);
}

void fastmap_set_wake(struct fastmap *f, void (*wake)(void *ctx), void *ctx)
{
	f->wake = wake;
	f->wake_ctx = ctx;
}

void fastmap_peer_drained(struct fastmap *f, uint64_t ticket)
{
	__atomic_store_n(&f->peer_done, ticket, __ATOMIC_RELEASE);
	if (f->wake)
		f->wake(f->wake_ctx);
}

void fastmap_stop_peer(struct fastmap *f)
{
	if (f->peer.slot)
		f->peer.stop(f->peer.ctx);
}

void fastmap_counts(const struct fastmap *f, uint64_t *slots, uint64_t *withdrawals, uint64_t *drains)
{
	*slots = __atomic_load_n(&f->used, __ATOMIC_RELAXED);
	*withdrawals = __atomic_load_n(&f->withdrawals, __ATOMIC_RELAXED);
	*drains = __atomic_load_n(&f->waits, __ATOMIC_RELAXED);
}

/* ---- readers ---- */

static uint32_t *held(struct fastmap *f, unsigned reader, unsigned bucket, unsigned phase)
{
	return &f->counter[reader * FASTMAP_BUCKETS + bucket].held[phase];
}

struct fastmap_hold fastmap_enter(struct fastmap *f, unsigned reader, uint64_t guest)
{
	struct fastmap_hold hold = { .bucket = (uint16_t)bucket_of(slice_of(f, guest)) };
	struct bucket *b = &f->bucket[hold.bucket];

	for (;;) {
		uint32_t *h, phase = __atomic_load_n(&b->phase, __ATOMIC_ACQUIRE);

		hold.phase = (uint8_t)phase;
		h = held(f, reader, hold.bucket, phase);
		__atomic_store_n(h, *h + 1, __ATOMIC_RELAXED);
		full_fence();
		if (__atomic_load_n(&b->phase, __ATOMIC_ACQUIRE) == phase)
			return hold;
		fastmap_leave(f, reader, hold);
	}
}

void fastmap_leave(struct fastmap *f, unsigned reader, struct fastmap_hold hold)
{
	uint32_t *h = held(f, reader, hold.bucket, hold.phase);

	__atomic_store_n(h, *h - 1, __ATOMIC_RELEASE);
	full_fence();
	if (__atomic_load_n(&f->bucket[hold.bucket].draining, __ATOMIC_RELAXED) && f->wake)
		f->wake(f->wake_ctx);
}

/* The words of a slice, or NULL. */
static const uint64_t *reader_slot(struct fastmap *f, uint64_t slice)
{
	uint32_t slot = slice_index_find(&f->index, slice);
	struct fastmap_slot *s = &f->slot[slot];

	if (slot == NO_SLOT || __atomic_load_n(&s->slice_plus_1, __ATOMIC_ACQUIRE) != slice + 1)
		return NULL;
	if (!__atomic_load_n(&s->referenced, __ATOMIC_RELAXED))
		__atomic_store_n(&s->referenced, 1, __ATOMIC_RELAXED);
	return s->word;
}

/* Whether an extent of these words goes on where the previous one ends. */
static bool continues(const struct fastmap_extent *e, const struct fastmap_extent *next)
{
	return e->zero == next->zero &&
	       (e->zero || (e->file == next->file && e->host + e->len == next->host));
}

unsigned fastmap_lookup(struct fastmap *f, uint64_t guest, uint32_t len, bool write,
			struct fastmap_extent *ext, unsigned max)
{
	uint64_t cluster = guest >> f->cluster_bits, size = 1ull << f->cluster_bits;
	const uint64_t *words = reader_slot(f, cluster / FASTMAP_SLICE_CLUSTERS);
	unsigned i = cluster % FASTMAP_SLICE_CLUSTERS, n = 0;
	uint64_t skip = guest & (size - 1);

	if (!words)
		return 0;
	for (; len; i++, skip = 0) {
		uint64_t word = i < FASTMAP_SLICE_CLUSTERS ? __atomic_load_n(&words[i], __ATOMIC_ACQUIRE) : 0;
		struct fastmap_extent e = {
			.host = (word & FASTMAP_HOST) + skip,
			.len = size - skip < len ? (uint32_t)(size - skip) : len,
			.file = (word & FASTMAP_FILE) >> FASTMAP_FILE_SHIFT,
			.zero = (word & FASTMAP_KIND) == FASTMAP_ZERO,
		};

		if (!word || (write && (e.zero || !(word & FASTMAP_WRITABLE))))
			return 0;
		len -= e.len;
		if (n && continues(&ext[n - 1], &e))
			ext[n - 1].len += e.len;
		else if (n == max)
			return 0;
		else
			ext[n++] = e;
	}
	return n;
}

/* ---- drains (metadata thread) ---- */

/* Whether no reader is counted in a phase of a bucket. */
static bool nobody(const struct fastmap *f, unsigned bucket, unsigned phase)
{
	for (unsigned r = 0; r < f->readers; r++)
		if (__atomic_load_n(held((struct fastmap *)f, r, bucket, phase), __ATOMIC_ACQUIRE))
			return false;
	return true;
}

/* See to it that everything withdrawn up to now is drained from a bucket; needs a full fence before. */
static void drain_bucket(struct fastmap *f, unsigned bucket)
{
	struct drains *d = &f->drains[bucket];
	struct bucket *b = &f->bucket[bucket];
	unsigned phase = b->phase;

	d->wanted = f->clock;
	if (d->flipped > d->done)
		return; /* running: flips again when it ends, as wanted > flipped */
	if (nobody(f, bucket, 0) && nobody(f, bucket, 1)) {
		d->done = d->flipped = f->clock;
		return;
	}
	d->flipped = f->clock;
	__atomic_store_n(&b->draining, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&b->phase, !phase, __ATOMIC_RELEASE);
	full_fence(); /* draining is seen by a leave() whose counter the next look misses */
}

/* End the bucket's drain if its old phase is empty; start the next one if somebody came later. */
static void advance_bucket(struct fastmap *f, unsigned bucket)
{
	struct drains *d = &f->drains[bucket];
	struct bucket *b = &f->bucket[bucket];

	while (d->flipped > d->done && nobody(f, bucket, !b->phase)) {
		d->done = d->flipped;
		__atomic_store_n(&b->draining, 0, __ATOMIC_RELAXED);
		if (d->wanted > d->done)
			drain_bucket(f, bucket);
	}
}

static bool peer_done(const struct fastmap *f, uint64_t ticket)
{
	return __atomic_load_n(&f->peer_done, __ATOMIC_ACQUIRE) >= ticket;
}

/* Move on over the buckets that are done; true when none is left. */
static bool pending_done(struct fastmap *f, struct pending_drain *p)
{
	if (!peer_done(f, p->ticket))
		return false;
	while (p->next < p->end) {
		unsigned bucket = bucket_of(p->next);

		advance_bucket(f, bucket);
		if (f->drains[bucket].done < p->stamp)
			return false;
		p->next++;
	}
	return true;
}

/* Have the peer drain the buckets of p; @words: some became 0 just now. Sets the ticket to wait for, or 0. */
static void drain_peer(struct fastmap *f, struct pending_drain *p, bool words)
{
	bool asked = words && f->peer.drain(f->peer.ctx, p->next, p->end, p->stamp) == -EWOULDBLOCK;

	for (uint64_t s = p->next; s < p->end; s++) {
		struct drains *d = &f->drains[bucket_of(s)];

		if (words)
			d->ticket = asked ? p->stamp : 0;
		if (d->ticket > p->ticket)
			p->ticket = d->ticket;
	}
}

/* Start draining the buckets of slices [first, end); the words are 0 already, @words: some only now. */
static struct pending_drain start_drain(struct fastmap *f, uint64_t first, uint64_t end, bool words)
{
	struct pending_drain p = { .stamp = ++f->clock, .next = first, .end = end };

	if (p.end - p.next > FASTMAP_BUCKETS)
		p.end = p.next + FASTMAP_BUCKETS;
	full_fence();
	for (uint64_t s = p.next; s < p.end; s++)
		drain_bucket(f, bucket_of(s));
	if (f->peer.slot)
		drain_peer(f, &p, words);
	return p;
}

static void reap_dying(struct fastmap *f)
{
	uint32_t *link = &f->dying;

	while (*link != NO_SLOT) {
		uint32_t slot = *link;
		struct place *p = &f->place[slot];

		advance_bucket(f, bucket_of(p->slice));
		if (f->drains[bucket_of(p->slice)].done >= p->stamp && peer_done(f, p->ticket)) {
			*link = p->next;
			f->dead--;
			put_free(f, slot);
		} else {
			link = &p->next;
		}
	}
}

void fastmap_poll(struct fastmap *f)
{
	struct pending_drain **link = &f->pending, *p;

	while ((p = *link)) {
		if (pending_done(f, p)) {
			*link = p->link;
			op_put(p->waiter, 0);
			free(p);
		} else {
			link = &p->link;
		}
	}
	reap_dying(f);
}

/* No memory to remember a waiter: readers leave without our help, so wait right here. */
static void drain_now(struct fastmap *f, struct pending_drain *p)
{
	static const struct timespec pause = { .tv_nsec = 20000 };

	while (!pending_done(f, p))
		nanosleep(&pause, NULL);
}

/* ---- slots (metadata thread) ---- */

/* Whether there was one that was not 0. */
static bool clear_words(struct fastmap *f, uint32_t slot, unsigned first, unsigned end)
{
	uint64_t all = 0;

	for (unsigned i = first; i < end; i++) {
		all |= f->slot[slot].word[i];
		__atomic_store_n(&f->slot[slot].word[i], 0, __ATOMIC_RELAXED);
	}
	return all;
}

/* Take a slot away from its slice; true if it can be used again at once. */
static bool kill_slot(struct fastmap *f, uint32_t slot)
{
	struct place *place = &f->place[slot];
	struct pending_drain p;

	if (f->peer.slot)
		f->peer.forget(f->peer.ctx, place->slice);
	slice_index_remove(&f->index, place->slice);
	__atomic_store_n(&f->slot[slot].slice_plus_1, 0, __ATOMIC_RELAXED);
	(void)clear_words(f, slot, 0, FASTMAP_SLICE_CLUSTERS);
	p = start_drain(f, place->slice, place->slice + 1,
			true); /* who saw the header may look at words later */
	count(&f->used, -1);
	if (pending_done(f, &p)) {
		place->state = PLACE_FREE;
		return true;
	}
	place->state = PLACE_DYING;
	place->stamp = p.stamp;
	place->ticket = p.ticket;
	place->next = f->dying;
	f->dying = slot;
	f->dead++;
	return false;
}

/* A slot that was not referenced since the hand came by last. */
static uint32_t pick_victim(struct fastmap *f)
{
	uint32_t slot = NO_SLOT;

	for (unsigned i = 0; i < 2 * f->slots; i++) {
		unsigned at = f->hand++ % f->slots;

		if (f->place[at].state != PLACE_USED)
			continue;
		slot = at;
		if (!__atomic_load_n(&f->slot[at].referenced, __ATOMIC_RELAXED))
			break;
		__atomic_store_n(&f->slot[at].referenced, 0, __ATOMIC_RELAXED);
	}
	return slot;
}

/* A slot that nobody has, or one taken from another slice; NO_SLOT: not this time. */
static uint32_t take_slot(struct fastmap *f)
{
	uint32_t slot;

	reap_dying(f);
	slot = f->free;
	if (slot != NO_SLOT) {
		f->free = f->place[slot].next;
		return slot;
	}
	if (f->dead >= f->slots / MIN_SLOTS) /* the rest is to be of use meanwhile */
		return NO_SLOT;
	slot = pick_victim(f);
	return kill_slot(f, slot) ? slot : NO_SLOT;
}

/* The slot of @slice, old or new; NO_SLOT: not this time. */
static uint32_t get_slot(struct fastmap *f, uint64_t slice)
{
	uint32_t slot = slice_index_find(&f->index, slice);

	if (slot != NO_SLOT)
		return slot;
	slot = take_slot(f);
	if (slot == NO_SLOT)
		return slot;
	f->place[slot].state = PLACE_USED;
	f->place[slot].slice = slice;
	count(&f->used, 1);
	__atomic_store_n(&f->slot[slot].referenced, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&f->slot[slot].slice_plus_1, slice + 1, __ATOMIC_RELEASE);
	slice_index_insert(&f->index, slice, slot);
	if (f->peer.slot)
		f->peer.tell(f->peer.ctx, slice, slot);
	return slot;
}

void fastmap_peer_off(struct fastmap *f, bool off)
{
	if (!f->peer.slot)
		return;
	f->off = off;
	for (uint32_t i = 0; off && i < f->slots; i++)
		if (f->place[i].state == PLACE_USED && kill_slot(f, i))
			put_free(f, i);
}

/* ---- the hooks of struct qcow2_table_ops ---- */

static void publish(void *ctx, uint64_t guest, uint64_t len, enum word_kind kind, unsigned file,
		    uint64_t host, bool writable)
{
	struct fastmap *f = ctx;
	uint64_t cluster = guest >> f->cluster_bits, end = cluster + (len >> f->cluster_bits);
	uint64_t step = kind == WORD_DATA ? 1ull << f->cluster_bits : 0, word = FASTMAP_ZERO;
	uint64_t most = (uint64_t)f->slots / 2 * FASTMAP_SLICE_CLUSTERS; /* not more than half the table */

	if (kind == WORD_DATA)
		word = FASTMAP_DATA | (uint64_t)file << FASTMAP_FILE_SHIFT |
		       (writable ? FASTMAP_WRITABLE : 0) | host;
	if (f->off)
		return;
	if (kind == WORD_DATA && (file >= FASTMAP_MAX_FILES || (host | (host + len - 1)) >> 56 || host % 512))
		return;
	if (end - cluster > most)
		end = cluster + most;
	while (cluster < end) {
		uint32_t slot = get_slot(f, cluster / FASTMAP_SLICE_CLUSTERS);

		do {
			if (slot != NO_SLOT)
				__atomic_store_n(&f->slot[slot].word[cluster % FASTMAP_SLICE_CLUSTERS], word,
						 __ATOMIC_RELEASE);
			word += step;
		} while (++cluster < end && cluster % FASTMAP_SLICE_CLUSTERS);
	}
}

/* Zero the words of clusters [first, end) that lie in a slot's slice; whether there was one that was not. */
static bool clear_range(struct fastmap *f, uint32_t slot, uint64_t first, uint64_t end)
{
	uint64_t base = f->place[slot].slice * FASTMAP_SLICE_CLUSTERS;
	uint64_t lo = first > base ? first - base : 0;
	uint64_t hi = end - base < FASTMAP_SLICE_CLUSTERS ? end - base : FASTMAP_SLICE_CLUSTERS;

	return clear_words(f, slot, (unsigned)lo, (unsigned)hi);
}

/* Whether no drain of a slice's bucket is running, here or by the peer: who saw a word that was zeroed before
 * has left. */
static bool settled(struct fastmap *f, uint64_t slice)
{
	const struct drains *d = &f->drains[bucket_of(slice)];

	advance_bucket(f, bucket_of(slice));
	return d->done >= d->flipped && peer_done(f, d->ticket);
}

/* Zero the words of clusters [first, end) of a slice; true if there was one that was not. *busy: a reader may
 * still use one that was zeroed before. */
static bool clear_slice(struct fastmap *f, uint64_t slice, uint64_t first, uint64_t end, bool *busy)
{
	uint32_t slot = slice_index_find(&f->index, slice);

	*busy |= slot == NO_SLOT || !settled(f, slice);
	return slot != NO_SLOT && clear_range(f, slot, first, end);
}

static int withdraw(void *ctx, uint64_t guest, uint64_t len, struct op *waiter)
{
	struct fastmap *f = ctx;
	uint64_t first = guest >> f->cluster_bits, end = first + ((len - 1) >> f->cluster_bits) + 1;
	uint64_t slice = first / FASTMAP_SLICE_CLUSTERS, slices = (end - 1) / FASTMAP_SLICE_CLUSTERS + 1;
	struct pending_drain p, *keep;
	bool words = false, busy = false;

	if (!len || !f->cluster_bits)
		return 0;
	count(&f->withdrawals, 1);
	if (slices - slice < f->slots) {
		for (uint64_t s = slice; s < slices; s++)
			words |= clear_slice(f, s, first, end, &busy);
	} else {
		busy = true;
		for (unsigned i = 0; i < f->slots; i++)
			if (f->place[i].state == PLACE_USED && f->place[i].slice >= slice &&
			    f->place[i].slice < slices)
				words |= clear_range(f, i, first, end);
	}
	if ((!words && !busy) || fastmap_test_skip_drain)
		return 0;
	p = start_drain(f, slice, slices, words);
	if (pending_done(f, &p))
		return 0;
	count(&f->waits, 1);
	keep = malloc(sizeof(*keep));
	if (!keep) {
		drain_now(f, &p);
		return 0;
	}
	*keep = p;
	keep->waiter = waiter;
	op_get(waiter);
	keep->link = f->pending;
	f->pending = keep;
	return -EWOULDBLOCK;
}

void fastmap_table_ops(struct fastmap *f, struct qcow2_table_ops *ops)
{
	*ops = (struct qcow2_table_ops){ .publish = publish, .withdraw = withdraw, .ctx = f };
}
