/* The kernels of oram: one batch of an access in one call.
 *
 * Read by the compiler, by cffi (oram/kernels/build.py drops the preprocessor lines) and by people.
 * The caller owns every buffer and has checked every length; nothing here allocates (OpenSSL's own contexts
 * aside), keeps global state or holds the GIL. oram/kernels/reference/ is the same in Python and is the specification.
 */
#ifndef ORAM_H
#define ORAM_H
#include <stddef.h>
#include <stdint.h>

/* Operations of a request. */
#define ORAM_READ 0
#define ORAM_WRITE 1
#define ORAM_REMOVE 2
#define ORAM_DUMMY 3

/* Where a request's block is after the access. */
#define ORAM_AT_REPEAT 0 /* not a first request: a dummy, or an address that came before in the batch */
#define ORAM_AT_NONE 1   /* the address holds no block */
#define ORAM_AT_SERVER 2
#define ORAM_AT_POOL 3

/* Results of a call: 0 is success; a positive result is the generation whose cipher context is missing (nothing
 * was changed; supply it and call again). */
#define ORAM_OK 0
#define ORAM_TAMPERED (-1)
#define ORAM_CIPHER_FAILED (-2)
#define ORAM_POOL_FULL (-3)
#define ORAM_BROKEN (-4) /* state is not sound, and may have been changed: give up the handle */

#define ORAM_NO_ROOM (-5) /* nothing was changed: give more scratch memory */

#define ORAM_STASH_FULL (-6) /* more was left over than has a place; state was changed: give up the handle */

#define ORAM_COUNTER_BITS 32 /* a reference is generation << ORAM_COUNTER_BITS | counter; 0 = never written */
#define ORAM_TAG 16 /* bytes of authentication tag behind each sealed page */
#define ORAM_MAX_BUCKET 1024 /* slots of a bucket */
#define ORAM_CUCKOO_STASH 32 /* slots of a table's stash */
#define ORAM_CUCKOO_PLACES 16 /* of the tables of one level, in the numbers that a stash entry has */
#define ORAM_CUCKOO_CHUNK 16 /* slots of what a chunk of a rebuild leaves over */
#define ORAM_BINNED_LEFT 128 /* slots of what the chunks of a rebuild leave over, where tables have bins */
#define ORAM_BINNED_BITS 27  /* of an address in a sealed word, there */
#define ORAM_CUCKOO_LEVELS 15 /* levels at most, with the bottom */

/* A cipher: seal writes len + ORAM_TAG bytes, open reads them and returns 0 only if they are authentic.
 * The nonce is (counter, padded with zeros); the slot number is associated data. In place is allowed. */
typedef int (*oram_seal_fn)(void *ctx, uint64_t counter, uint64_t slot, const uint8_t *plain, size_t len, uint8_t *sealed);
typedef int (*oram_open_fn)(void *ctx, uint64_t counter, uint64_t slot, const uint8_t *sealed, size_t len, uint8_t *plain);
typedef struct {
    oram_seal_fn seal;
    oram_open_fn open;
} oram_cipher;

/* Contexts of one cipher by generation; NULL where not loaded. New pages are sealed under `current`. */
typedef struct {
    const oram_cipher *cipher;
    void **contexts;
    uint32_t count;
    uint32_t current;
    uint64_t counter; /* next nonce of the current generation */
} oram_keys;

/* AES-256-GCM by libcrypto's EVP. */
void *oram_gcm_new(const uint8_t *key);
void oram_gcm_free(void *ctx);
const oram_cipher *oram_gcm(void);

/* A cipher with detached tags whose functions live in another library (libaegis). */
typedef int (*oram_detached_encrypt_fn)(uint8_t *c, uint8_t *mac, size_t maclen, const uint8_t *m, size_t mlen,
                                        const uint8_t *ad, size_t adlen, const uint8_t *npub, const uint8_t *k);
typedef int (*oram_detached_decrypt_fn)(uint8_t *m, const uint8_t *c, size_t clen, const uint8_t *mac, size_t maclen,
                                        const uint8_t *ad, size_t adlen, const uint8_t *npub, const uint8_t *k);
typedef struct {
    oram_detached_encrypt_fn encrypt;
    oram_detached_decrypt_fn decrypt;
    uint8_t key[32];
} oram_detached;
const oram_cipher *oram_detached_cipher(void);

/* Seal or open n pages of len plain bytes that lie end to end, page i under counter + i as slot i. */
int oram_seal_many(const oram_cipher *cipher, void *ctx, uint64_t counter, uint32_t n, size_t len, const uint8_t *plain, uint8_t *sealed);
int oram_open_many(const oram_cipher *cipher, void *ctx, uint64_t counter, uint32_t n, size_t len, const uint8_t *sealed, uint8_t *plain);

/* Seal what lies in the slots named, after opening it where `warm`: the floor of an access, for benchmarks. */
int oram_floor(const oram_cipher *cipher, void *ctx, int warm, uint32_t n, const uint64_t *slots, size_t len, uint8_t *region, uint8_t *plain);

/* Blocks that the client holds. docs/architecture.md explains the pool. */
typedef struct {
    int32_t *head;  /* (2^T) first slot of each chain, -1 at its end */
    uint32_t *addr; /* (cap) ORAM_EMPTY where free */
    uint32_t *leaf; /* (cap) */
    int32_t *next;  /* (cap) chain, or list of free slots */
    uint8_t *data;  /* (cap, B) */
    int32_t cap, free, used;
} oram_pool;

/* Path ORAM: geometry and client state. docs/architecture.md explains pages and references. */
typedef struct {
    uint32_t Z, L, T, h; /* bucket slots, leaf level, first level at the server, levels a page */
    uint32_t h0, layers; /* levels of the page in layer 0, number of layers */
    uint32_t B;          /* bytes of a block */
    uint32_t plain;      /* bytes of a page in clear; a slot is plain + ORAM_TAG */
    uint64_t N;          /* blocks */
    uint32_t *position;  /* (N) leaf of each block */
    uint64_t *refs;      /* (2^T) references of the pages of layer 0 */
    oram_pool pool;
} oram_path;

/* Bytes of scratch memory a batch of m requests needs (8-byte aligned). The first part of it holds the plan. */
size_t oram_path_scratch(const oram_path *p, uint32_t m);

/* Step 1: which pages. path: (m) leaf that each request reads. slots: (m * layers) slot numbers, in layer order.
 * Returns the number of pages. Changes nothing but scratch. */
uint32_t oram_path_plan(const oram_path *p, uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint32_t *draws,
                        uint32_t *path, uint64_t *slots, uint8_t *scratch);

/* Step 2: open, serve, evict, seal. sealed: the pages read, (pages, plain + ORAM_TAG), replaced by those to write; or,
 * with in_place, the memory of the whole region. present: likewise. data: (m, B) for writes. out: (m, B) the blocks
 * before each request. For the journal, all NULL or none: placed (pages * (2^h - 1) * Z) address in each slot, ORAM_EMPTY
 * where none; where (m) ORAM_AT_* of the block of each first request to an address; pool (m) its pool slot, ORAM_EMPTY where
 * it has none; after (m, B) its content now. */
int oram_path_access(oram_path *p, oram_keys *keys, uint32_t m, const uint8_t *ops, const uint32_t *addrs,
                     const uint32_t *draws, uint32_t pages, const uint64_t *slots, uint8_t *sealed, uint8_t *present,
                     int in_place, const uint8_t *data, uint8_t *out, uint32_t *placed, uint8_t *where,
                     uint32_t *pool, uint8_t *after, uint8_t *scratch);

/* Both steps at once over the region's own memory. path and slots are scratch as well. */
int oram_path_in_place(oram_path *p, oram_keys *keys, uint32_t m, const uint8_t *ops, const uint32_t *addrs,
                       const uint32_t *draws, uint32_t *path, uint64_t *slots, uint8_t *region, uint8_t *present,
                       const uint8_t *data, uint8_t *out, uint8_t *scratch);

/* Open n pages under the references given (0: the page is empty, and comes out as such). */
int oram_path_open(const oram_path *p, const oram_keys *keys, uint32_t n, const uint64_t *slots, const uint64_t *refs,
                   const uint8_t *sealed, const uint8_t *present, uint8_t *plain);

/* Seal n pages whose content is given: source (n * (2^h - 1) * Z) index of the block in each slot, -1 where none; children
 * (n * 2^h) references. */
int oram_path_build(const oram_path *p, oram_keys *keys, uint32_t n, const uint64_t *slots, const uint64_t *children,
                    const int64_t *source, const uint32_t *addr, const uint32_t *leaf, const uint8_t *blocks, uint8_t *sealed);

/* Numbers for a batch, expanded from its seed. */
typedef struct oram_coins oram_coins;
oram_coins *oram_coins_new(void);
void oram_coins_free(oram_coins *coins);

/* Ring ORAM: geometry and client state. A row of metadata for each bucket: refs (rows) reference of its slot 0, 0 where never written;
 * spent (rows, W) a bit for each slot read since; addr, slot (rows, Z) the blocks it was written with. A block is there while its slot is not
 * spent. Rows are those of all buckets; or, where `windowed`, of the buckets of the batch, and then children (rows, 2) and roots (2^T) are
 * references of metadata. */
typedef struct {
    uint32_t Z, A, S, L, T, W; /* blocks and dummies of a bucket, accesses an eviction, leaf level, first level at the server, words of a bit set */
    uint32_t B;                /* bytes of a block */
    uint32_t windowed;
    uint64_t N;         /* blocks */
    uint32_t *position; /* (N) leaf of each block */
    uint64_t *clock;    /* (1) accesses so far */
    uint64_t *refs, *spent;
    uint32_t *addr;
    uint16_t *slot;
    uint64_t *children, *roots;
    oram_pool pool;
    oram_coins *coins;
} oram_ring;

/* Bytes of scratch memory a batch of m requests needs (8-byte aligned). It keeps what one step leaves for the next. */
size_t oram_ring_scratch(const oram_ring *p, uint32_t m);

/* Buckets that m requests can need at most. */
size_t oram_ring_most(const oram_ring *p, uint32_t m);

/* Step 1: which buckets. path: (m) leaf that each request reads. number: (most) the buckets on the paths and those evicted to, in
 * ascending order. Returns how many. Changes nothing but scratch. */
uint32_t oram_ring_buckets(const oram_ring *p, uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint32_t *draws,
                           uint32_t *path, uint64_t *number, uint8_t *scratch);

/* Where windowed: open their metadata into the rows, from the top. in_place: of the whole region. */
int oram_ring_load(oram_ring *p, const oram_keys *keys, uint32_t m, const uint8_t *sealed, const uint8_t *present, int in_place, uint8_t *scratch);

/* Step 2: which slots. online: (m, L + 1 - T) slot that each request reads at each level, -1 for none. rewritten: (most) buckets to be
 * written anew, in ascending order. fetched: (most, Z) their slots to be read. Returns how many buckets, or an error. Changes nothing but scratch. */
int64_t oram_ring_plan(const oram_ring *p, uint32_t m, const uint32_t *addrs, const uint8_t *seed, int64_t *online,
                       uint64_t *rewritten, uint64_t *fetched, uint8_t *scratch);

/* Step 3: open, serve, evict, reshuffle, seal. sealed: the online slots in order without the -1, then the fetched ones; or, with in_place,
 * the whole region; present: likewise. folded: NULL, or (m, B + ORAM_TAG) XOR of each request's online slots, which are then not in `sealed`.
 * plain: (rewritten * Z, B) scratch. written: (rewritten * (Z + S), B + ORAM_TAG), not used with in_place. meta, meta_present: NULL, or
 * the region of the metadata, which is then stored in place as well. new_addr, new_slot: (rewritten, Z) the blocks of each rewritten bucket. out, where,
 * pool, after as for Path; new_addr, new_slot, where, pool and after may all be NULL. */
int oram_ring_access(oram_ring *p, oram_keys *keys, uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint32_t *draws,
                     const uint32_t *path, const int64_t *online, uint32_t count, const uint64_t *fetched, uint8_t *sealed,
                     uint8_t *present, int in_place, const uint8_t *folded, const uint8_t *data, uint8_t *out, uint8_t *plain,
                     uint8_t *written, uint8_t *meta, uint8_t *meta_present, uint32_t *new_addr, uint16_t *new_slot, uint8_t *where,
                     uint32_t *pool, uint8_t *after, uint8_t *scratch);

/* All steps at once over the regions' own memory. plain: (room * Z, B) scratch; ORAM_NO_ROOM if it takes more: `count` says how much. */
int oram_ring_in_place(oram_ring *p, oram_keys *keys, uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint32_t *draws,
                       const uint8_t *seed, uint32_t *path, uint64_t *number, int64_t *online, uint64_t *rewritten, uint64_t *fetched,
                       uint8_t *sealed, uint8_t *present, uint8_t *meta, uint8_t *meta_present, const uint8_t *data, uint8_t *out,
                       uint8_t *plain, uint32_t room, uint32_t *count, uint8_t *scratch);

/* Where windowed: seal the metadata of the batch's buckets, as one to one as they were read. */
int oram_ring_store(oram_ring *p, oram_keys *keys, uint32_t m, uint8_t *sealed, uint8_t *present, int in_place, uint8_t *scratch);

/* Open n slots of len bytes in clear under the references given (0: zeros). */
int oram_open_slots(const oram_keys *keys, uint32_t n, size_t len, const uint64_t *slots, const uint64_t *refs, const uint8_t *sealed,
                    const uint8_t *present, uint8_t *plain);

/* Seal n slots under the next nonces: source (n) row of `rows` (.., len), -1 for zeros. */
int oram_seal_slots(oram_keys *keys, uint32_t n, size_t len, const uint64_t *slots, const int64_t *source, const uint8_t *rows, uint8_t *sealed);

/* The hash functions of Cuckoo's tables: AES-256 under one key. */
typedef struct oram_prf oram_prf;
oram_prf *oram_prf_new(const uint8_t *key);
void oram_prf_free(oram_prf *prf);

/* A level of Cuckoo ORAM: oram/params/cuckoo.py and binned.py say what its numbers are. Where tables have bins, m is that of a bin, and width its slots. */
typedef struct {
    uint32_t n, m, b, r, width;
    uint32_t spare;           /* slots between the passes for what a chunk leaves over */
    uint64_t scanned;         /* slots of a table that the rebuild which consumes it reads */
    uint64_t duration, first; /* accesses of a rebuild, and of its first pass */
    uint64_t steps;           /* accesses over which the placement is spread */
    uint64_t stride;          /* of the cells in the order in which trees are placed */
    uint64_t middle;          /* first slot of what lies between the passes */
    const uint64_t *place;    /* (L + 1) first slot of a table, by the level that will consume it; of the bottom (2), in turn */
} oram_cuckoo_level;

/* The rebuild of a level: what lies outside the state. Entries are the members in ascending order of address (for oram_cuckoo_place in any,
 * that of `list`). */
typedef struct {
    uint64_t epoch;
    uint32_t active;
    uint32_t placed;    /* what follows up to `full` is of no use any more */
    uint64_t position;  /* of the placement, in steps */
    uint64_t cursor;    /* next address to look for a member, or row of `list` */
    uint32_t entry;     /* next entry */
    uint32_t *both;     /* (n) XOR of an entry's two cells */
    uint32_t *root;     /* (2 m) union-find; then XOR of the entries not placed yet at a cell */
    uint8_t *full;      /* (2 m) a component has a cycle; then the number of entries not placed yet at a cell */
    uint32_t count;     /* members */
    uint8_t *kind;      /* (n) of each entry: where it was, and in which of its cells it is */
    uint64_t *member;   /* ((N + 63) / 64) a bit for each address; not used where there is `list` */
    uint32_t *rank;     /* (N / 512 + 1) entries before each 512 addresses */
    uint32_t *list;     /* (n) members of a level that is only the top buffer, or NULL */
    uint32_t mines;     /* members that the client has itself, placed */
    uint32_t lefts;     /* and left over */
    uint32_t *mine;     /* (c + stash) cell */
    uint32_t *mine_at;  /* (c + stash) row of the top buffer, or c + place in the stash */
    uint32_t *left;     /* (ORAM_CUCKOO_STASH) likewise */
    int32_t reading, writing; /* segment: its kind and number */
    uint32_t held, settled;   /* blocks in hand, and those of them that have their place in what is written next */
    uint32_t rest;            /* those left over */
    uint32_t *hand_addr;      /* (hand) */
    uint8_t *hand;            /* (hand, B) */
    uint32_t *content;        /* (content) of what is written next: 0 none, 1 + place in hand, or 1 + hand + as in mine_at */
    uint32_t *fill;           /* (b) */
    uint32_t *stash;          /* (ORAM_CUCKOO_STASH) place in hand or as in mine_at, of those left over */
    uint32_t hands, contents; /* sizes of hand and content */
} oram_cuckoo_build;

/* The rebuild of a level where tables have bins. */
typedef struct {
    uint64_t epoch;
    uint32_t active;
    int32_t reading, writing; /* segment: its kind and number */
    uint32_t hands, contents; /* sizes of hand and content */
    uint32_t index_mask;
    uint32_t held, settled; /* entries in hand, and those of them whose cells are known */
    uint32_t lefts;         /* entries left over by the chunks so far */
    uint32_t *hand_word;    /* (hands) address, and whether it is empty */
    uint8_t *hand_age;      /* (hands) 0 of the top buffer, else 1 + level */
    uint8_t *hand;          /* (hands, B) */
    uint32_t *u, *v;        /* (hands) cells, the first counted over all bins */
    uint32_t *index;        /* (table) 1 + place in hand of each address, 0 where free */
    uint32_t *left_word;    /* (ORAM_BINNED_LEFT) */
    uint8_t *left_age;
    uint8_t *left;          /* (ORAM_BINNED_LEFT, B) */
    uint32_t *content;      /* (contents) of what is written: 0 none, 1 + place in hand, or 1 + hands + place among those left over */
    uint32_t *fill;         /* (b) */
    uint32_t *list;         /* (hands) places in hand of those that are placed in a bin */
    uint32_t *both;         /* (hands) XOR of the two cells of each */
    uint8_t *kind;          /* (hands) which of its cells each is in */
    uint32_t *root;         /* (2 m) union-find; then XOR of the entries not placed yet at a cell */
    uint8_t *full;          /* (2 m) a component has a cycle; then the number of entries not placed yet at a cell */
} oram_binned_build;

/* Cuckoo ORAM: geometry and client state, oram/kernels/base.py explains it. */
typedef struct {
    uint32_t N, B, c, L, log_size;
    uint64_t slots;
    uint64_t each;      /* entries of the index that an access ages */
    oram_cuckoo_level *levels; /* (L + 1) */
    oram_cuckoo_build *builds; /* (L + 1); or, where tables have bins: */
    oram_binned_build *bins;   /* (L + 1) */
    oram_prf *prf;
    oram_coins *coins;
    uint64_t *clock;    /* (2) */
    uint16_t *code;     /* (N) */
    uint32_t *log_addr; /* (log_size) */
    uint16_t *log_code;
    uint32_t *page_addr; /* (L + 1, c) */
    uint8_t *page_data;  /* (L + 1, c, B) */
    uint32_t stash;      /* room for what all tables left over */
    uint32_t *stash_addr;
    int32_t *stash_of;   /* table, -1 where free */
    uint8_t *stash_data; /* (stash, B) */
} oram_cuckoo;

/* What a batch does, and memory for it. Room and numbers of: slots read, of them those that the batch has not itself written, slots of a probe,
 * slots written, distinct ones. */
typedef struct {
    uint64_t clock;
    uint32_t m;
    uint32_t reads, read_room, fetches, fetch_room, probes, probe_room, writes, write_room, distinct, distinct_room;
    int32_t *from;        /* (reads) which of those fetched, or -1 - which of those written */
    uint64_t *slot, *epoch; /* (fetches) */
    uint64_t *probe;      /* (probes, 2) */
    uint32_t *to;         /* (writes) which of the distinct ones */
    uint64_t *written, *sealed_as; /* (distinct) slot, and epoch */
    uint32_t *count;      /* (m) tables probed */
    int32_t *real;        /* (m) which of them for a block that is there, -1 for none */
    int32_t *home;        /* (m) that table, as in stash_of; -1: in a top buffer; -2: there is none */
    uint32_t *after;      /* (m) code of the address after the request */
    int32_t *last;        /* (table) latest request to an address */
    uint32_t last_mask;
    int32_t *known;       /* (table) slots written */
    uint32_t known_mask;
} oram_cuckoo_batch;

/* Step 1: which slots. Fills the batch's memory; ORAM_NO_ROOM: its numbers say how much it takes. Changes nothing else. */
int oram_cuckoo_plan(const oram_cuckoo *p, uint32_t m, const uint8_t *ops, const uint32_t *addrs, const uint8_t *seed, oram_cuckoo_batch *q);

/* Step 2: open, serve, append, work at the rebuilds, seal. sealed: (fetches, slot size) in the order of the plan; or, with in_place, the whole region,
 * which is written, too; present: likewise. plain: (fetches, 4 + B). written: (distinct, slot size). before: (m) code of each request's address. out, where,
 * after as for Path. */
int oram_cuckoo_access(oram_cuckoo *p, oram_keys *keys, const oram_cuckoo_batch *q, const uint8_t *ops, const uint32_t *addrs, uint8_t *sealed,
                       uint8_t *present, int in_place, uint8_t *plain, const uint8_t *data, uint8_t *written, uint16_t *before, uint8_t *out,
                       uint8_t *where, uint8_t *after);

/* After an opening: n blocks of a table's stash. */
int oram_cuckoo_stash(oram_cuckoo *p, uint32_t level, uint64_t epoch, uint32_t n, const uint32_t *addr, const uint8_t *blocks);
/* A rebuild under way: place it. codes: (N) a copy of the index, which is brought back to what it was when it began. */
int oram_cuckoo_begin(oram_cuckoo *p, uint32_t level, uint64_t epoch, uint16_t *codes);
/* What it had read again, from one position of its work to another. */
int oram_cuckoo_again(oram_cuckoo *p, uint32_t level, uint64_t low, uint64_t high, const uint32_t *addr, const uint8_t *blocks);

/* Place n addresses in a table at once: cell (n), -1 in the stash. The build's `list` is those addresses. */
int oram_cuckoo_place(oram_cuckoo *p, uint32_t level, uint64_t epoch, uint32_t n, int64_t *cell);
/* The cells of n addresses: (n, 2). */
int oram_cuckoo_pairs(const oram_cuckoo *p, uint32_t level, uint64_t epoch, uint32_t n, const uint32_t *addr, int64_t *pairs);

/* Open n slots into rows of 4 + B bytes, address and block; seal n whose content is given: source (n) row, -1 for a dummy. */
int oram_cuckoo_open(const oram_cuckoo *p, const oram_keys *keys, uint32_t n, const uint64_t *slots, const uint64_t *epochs, const uint8_t *sealed,
                     const uint8_t *present, uint8_t *rows);
int oram_cuckoo_seal(const oram_cuckoo *p, oram_keys *keys, uint32_t n, const uint64_t *slots, uint64_t epoch, const int64_t *source,
                     const uint32_t *addr, const uint8_t *blocks, uint8_t *sealed);

/* What a batch does where there is no index, and memory for it: the current piece of it, its round, and what was written so far. */
typedef struct {
    uint64_t clock;            /* of the piece */
    uint32_t m, at;            /* requests; those of the pieces before */
    uint32_t count;            /* requests of the piece, 0 where the next one has not begun */
    uint32_t tables, round;
    uint32_t table_room;
    uint32_t *level;           /* (tables), the newest first */
    uint64_t *epoch_of;
    uint32_t *u, *v;           /* (m, table_room) fresh cells */
    uint8_t *seeks;            /* (m) whether it is looked for at all: 0 of a dummy, 2 of an address that came before in the piece */
    uint64_t *kept;            /* (m) 1 + flush of its newest row in a top buffer, 0 where there is none */
    uint8_t *found;            /* (m) */
    uint32_t *found_word;
    uint8_t *found_data;       /* (m, B) */
    uint32_t fetches, fetch_room, probed; /* slots that the round reads, of them those of its probes */
    uint64_t *slot, *epoch;    /* (fetch_room) */
    int32_t *from;             /* (2 m) of the probes: which of those fetched, or -1 - which of those written */
    uint64_t *probe;           /* (m, 2) */
    uint32_t reads, read_room; /* slots that the rebuilds read in the piece */
    int32_t *read_from;        /* (read_room) which of those that rebuilds fetched, or -1 - which of those written */
    uint8_t *desk;             /* (2 m, 4 + B) what the probes of the round have read */
    uint8_t *input;            /* (read_room, 4 + B) what the rebuilds have */
    uint32_t writes, write_room, distinct; /* slots written in the piece; in the batch, distinct ones */
    uint32_t *to;              /* (write_room) which of the distinct ones */
    uint64_t *written, *sealed_as; /* (write_room) slot, and epoch */
    uint8_t *content;          /* (write_room, slot size) */
    int32_t *known;            /* (table) slots written */
    uint32_t known_mask;
} oram_binned_batch;

/* What the next m accesses need at most: tables at once, slots read and slots written by rebuilds. */
int oram_binned_count(const oram_cuckoo *p, uint32_t m, uint32_t *tables, uint64_t *reads, uint64_t *writes);
/* A new batch. */
int oram_binned_begin(const oram_cuckoo *p, uint32_t m, const uint8_t *seed, oram_binned_batch *q);
/* The slots of the next round; none is there where `count` stays 0. */
int oram_binned_ask(const oram_cuckoo *p, const uint8_t *ops, const uint32_t *addrs, oram_binned_batch *q);
/* What it has read, (fetches, slot size). At the end of a piece the requests are served, and the rebuilds go on. data, out, where, after as for Path. */
int oram_binned_tell(oram_cuckoo *p, const oram_keys *keys, oram_binned_batch *q, const uint8_t *ops, const uint32_t *addrs, const uint8_t *sealed,
                     const uint8_t *present, const uint8_t *data, uint8_t *out, uint8_t *where, uint8_t *after);
/* Seal what the batch writes, in its `content`. */
int oram_binned_finish(const oram_cuckoo *p, oram_keys *keys, const oram_binned_batch *q);

/* After an opening: n entries of a table's stashes; a rebuild under way; what its chunks had left over; and what it had read, from one position
 * of its work to another. */
int oram_binned_resume(oram_cuckoo *p, uint32_t level, uint64_t epoch);
int oram_binned_left(oram_cuckoo *p, uint32_t level, uint32_t n, const uint32_t *words, const uint8_t *blocks);
int oram_binned_again(oram_cuckoo *p, uint32_t level, uint64_t low, uint64_t high, const uint32_t *words, const uint8_t *blocks);

/* Place n entries in a bin of a level: pairs (n, 2) of cells in it; cell (n), -1 in the stash. */
int oram_binned_place(oram_cuckoo *p, uint32_t level, uint32_t n, const int64_t *pairs, int64_t *cell);
/* The cells of n addresses: (n, 2). */
int oram_binned_pairs(const oram_cuckoo *p, uint32_t level, uint64_t epoch, uint32_t n, const uint32_t *addr, int64_t *pairs);

/* Linear ORAM: every slot, every time. pages slots of g blocks; base: reference of slot 0 (slot i was sealed under
 * base + i), 0 where never written. out and data as above. */
int oram_linear_access(oram_keys *keys, uint64_t N, uint32_t B, uint32_t g, uint32_t pages, uint64_t *base, uint32_t m,
                       const uint8_t *ops, const uint32_t *addrs, uint8_t *sealed, uint8_t *present, const uint8_t *data,
                       uint8_t *out, uint8_t *plain);

/* The directory's index: open addressing over addresses. tags: (N, 16) by address; table: (size = 2^k) address + 1, 0
 * where free. Tags are the output of a keyed PRF, so their first bytes are the hash. */
int64_t oram_index_find(const uint8_t *tags, const uint32_t *table, uint64_t size, const uint8_t *tag);
void oram_index_insert(const uint8_t *tags, uint32_t *table, uint64_t size, uint32_t address);
void oram_index_remove(const uint8_t *tags, uint32_t *table, uint64_t size, uint32_t address);
/* Inserts every address whose tag is not zero into an empty table; returns how many. */
uint64_t oram_index_build(const uint8_t *tags, uint64_t N, uint32_t *table, uint64_t size);

/* Simulations of metadata alone, for statistics over many accesses: no payloads, keys, dummies or server. */

#define ORAM_ROUND_ROBIN 0 /* addresses 0, 1, ... N - 1, 0, ... */
#define ORAM_UNIFORM 1
#define ORAM_SPACE 0xffffffffffffffffu /* an entry of a bucket without a block */

/* Numbers of xoshiro256** from its state of 4 words, which splitmix64 makes from a seed. Statistics need nothing stronger. */
void oram_seed(uint64_t *random, uint64_t seed);

/* A tree without payloads. A block is an entry address << 32 | leaf. A bucket's blocks come first, then ORAM_SPACE; buckets are numbered as in a heap. */
typedef struct {
    uint32_t Z, L, N;
    uint32_t A, S;      /* Ring's, for oram_simulate_ring */
    uint32_t pattern;   /* which addresses, where the caller names none */
    uint64_t clock;     /* accesses so far */
    uint64_t *random;   /* (4) */
    uint32_t *position; /* (N) leaf of each block */
    uint64_t *tree;     /* ((2^(L+1) - 1) Z) */
    uint16_t *reads;    /* (2^(L+1) - 1) of each bucket since it was written, for oram_simulate_ring */
    uint64_t *stash;    /* (room) oldest first */
    uint32_t room, held;
    uint64_t *hand;     /* (room + (L + 1) Z + 1) scratch */
    int32_t *next;      /* as many, and 4 (L + 1) more */
} oram_forest;

/* Draws initial leaves for an empty tree. */
void oram_simulate_start(oram_forest *p);

/* Path ORAM. addrs, leaves: (accesses) whose block goes to which new leaf; NULL: by pattern, and drawn. counts: (bins) accesses after which the stash
 * held so many, the last with all above. sizes: NULL or (accesses) stash after each. Returns how many accesses were done: fewer where the stash has no room. */
uint64_t oram_simulate_path(oram_forest *p, uint64_t accesses, const uint32_t *addrs, const uint32_t *leaves, uint64_t *counts, uint32_t bins,
                            uint32_t *sizes);

/* Ring ORAM. before, after: (bins) evictions right before and right after which the stash held so many. early: (L + 1) reshuffles of buckets at each level
 * that were no eviction. All else as above. */
uint64_t oram_simulate_ring(oram_forest *p, uint64_t accesses, const uint32_t *addrs, const uint32_t *leaves, uint64_t *before, uint64_t *after,
                            uint32_t bins, uint64_t *early, uint32_t *sizes);

/* So many times n keys with two random cells each, one in either of two tables of m: counts (bins) of those that left over so many keys however they are placed.
 * parent: (2 m) scratch; full: (2 m) scratch. */
void oram_simulate_cuckoo(uint64_t *random, uint32_t n, uint32_t m, uint64_t builds, uint64_t *counts, uint32_t bins, uint32_t *parent, uint8_t *full);

#define ORAM_EMPTY 0xffffffffu
#endif
