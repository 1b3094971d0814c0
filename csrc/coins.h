/* Inside the kernels: numbers from the seed of a batch. */
#ifndef ORAM_COINS_H
#define ORAM_COINS_H
#include "oram.h"

/* Begin anew with this seed, 32 bytes. */
int coins_start(oram_coins *coins, const uint8_t *seed);

/* A number below n, no further from uniform than n / 2^64. */
int coins_below(oram_coins *coins, uint32_t n, uint32_t *out);
#endif
