/* The directory's index: linear probing, deletion by backward shift (no tombstones, so no rebuild). */
#include "bytes.h"
#include "oram.h"

static uint64_t home(const uint8_t *tags, uint32_t entry, uint64_t size) {
    return ld64(tags + (uint64_t)(entry - 1) * 16) & (size - 1);
}

int64_t oram_index_find(const uint8_t *tags, const uint32_t *table, uint64_t size, const uint8_t *tag) {
    for (uint64_t i = ld64(tag) & (size - 1);; i = (i + 1) & (size - 1)) {
        uint32_t entry = table[i];
        if (entry == 0) return -1;
        if (memcmp(tags + (uint64_t)(entry - 1) * 16, tag, 16) == 0) return (int64_t)entry - 1;
    }
}

void oram_index_insert(const uint8_t *tags, uint32_t *table, uint64_t size, uint32_t address) {
    uint64_t i = home(tags, address + 1, size);
    while (table[i] != 0) i = (i + 1) & (size - 1);
    table[i] = address + 1;
}

void oram_index_remove(const uint8_t *tags, uint32_t *table, uint64_t size, uint32_t address) {
    uint64_t hole = home(tags, address + 1, size);
    while (table[hole] != address + 1) {
        if (table[hole] == 0) return;
        hole = (hole + 1) & (size - 1);
    }
    for (uint64_t i = (hole + 1) & (size - 1); table[i] != 0; i = (i + 1) & (size - 1)) {
        /* an entry may fill the hole unless its home lies cyclically in (hole, i] */
        if (((i - home(tags, table[i], size)) & (size - 1)) >= ((i - hole) & (size - 1))) {
            table[hole] = table[i];
            hole = i;
        }
    }
    table[hole] = 0;
}

uint64_t oram_index_build(const uint8_t *tags, uint64_t N, uint32_t *table, uint64_t size) {
    static const uint8_t zero[16];
    uint64_t n = 0;
    for (uint64_t a = 0; a < N; a++) {
        if (memcmp(tags + a * 16, zero, 16) == 0) continue;
        oram_index_insert(tags, table, size, (uint32_t)a);
        n++;
    }
    return n;
}
