/* Linear ORAM: opens, serves and seals every slot. */
#include "bytes.h"
#include "oram.h"

int oram_linear_access(oram_keys *keys, uint64_t N, uint32_t B, uint32_t g, uint32_t pages, uint64_t *base, uint32_t m,
                       const uint8_t *ops, const uint32_t *addrs, uint8_t *sealed, uint8_t *present, const uint8_t *data,
                       uint8_t *out, uint8_t *plain) {
    const size_t len = (size_t)g * B, slot = len + ORAM_TAG;
    const uint32_t generation = (uint32_t)(*base >> ORAM_COUNTER_BITS);
    int bad = 0;
    (void)N;
    if (keys->counter + pages > (uint64_t)1 << ORAM_COUNTER_BITS) return ORAM_CIPHER_FAILED;
    if (*base != 0) {
        if (generation >= keys->count || keys->contexts[generation] == NULL) return (int)generation;
        for (uint32_t i = 0; i < pages; i++)
            bad |= !present[i] || keys->cipher->open(keys->contexts[generation], (*base & (((uint64_t)1 << ORAM_COUNTER_BITS) - 1)) + i, i,
                                                     sealed + i * slot, len, plain + i * len) != ORAM_OK;
        if (bad) return ORAM_TAMPERED;
    } else {
        memset(plain, 0, pages * len);
    }
    for (uint32_t r = 0; r < m; r++) {
        uint8_t *to = out + (size_t)r * B;
        if (ops[r] == ORAM_DUMMY) {
            memset(to, 0, B);
            continue;
        }
        uint8_t *at = plain + (size_t)addrs[r] * B; /* pages are g whole blocks, so blocks lie end to end */
        memcpy(to, at, B);
        if (ops[r] == ORAM_WRITE) memcpy(at, data + (size_t)r * B, B);
        if (ops[r] == ORAM_REMOVE) memset(at, 0, B);
    }
    const uint64_t counter = keys->counter;
    keys->counter += pages; /* before the first seal: whatever happens then, no nonce is used twice */
    for (uint32_t i = 0; i < pages; i++) {
        int rc = keys->cipher->seal(keys->contexts[keys->current], counter + i, i, plain + i * len, len, sealed + i * slot);
        if (rc != ORAM_OK) return rc;
        present[i] = 1;
    }
    *base = ((uint64_t)keys->current << ORAM_COUNTER_BITS) | counter;
    return ORAM_OK;
}
