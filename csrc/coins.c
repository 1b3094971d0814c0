/* Uniform numbers from a seed: the keystream of AES-256-CTR by libcrypto, 64 bits a number. */
#include <openssl/evp.h>

#include "bytes.h"
#include "coins.h"

#define CHUNK 512

struct oram_coins {
    EVP_CIPHER_CTX *stream;
    uint32_t at;
    uint8_t chunk[CHUNK];
};

void oram_coins_free(oram_coins *coins) {
    if (coins == NULL) return;
    EVP_CIPHER_CTX_free(coins->stream);
    OPENSSL_clear_free(coins, sizeof *coins);
}

oram_coins *oram_coins_new(void) {
    static const uint8_t zeros[32];
    oram_coins *coins = OPENSSL_zalloc(sizeof *coins);
    if (coins == NULL) return NULL;
    coins->stream = EVP_CIPHER_CTX_new();
    if (coins->stream == NULL || EVP_EncryptInit_ex(coins->stream, EVP_aes_256_ctr(), NULL, zeros, zeros) != 1) {
        oram_coins_free(coins);
        return NULL;
    }
    return coins;
}

int coins_start(oram_coins *coins, const uint8_t *seed) {
    static const uint8_t zeros[16];
    coins->at = CHUNK;
    return EVP_EncryptInit_ex(coins->stream, NULL, NULL, seed, zeros) == 1 ? ORAM_OK : ORAM_CIPHER_FAILED;
}

int coins_below(oram_coins *coins, uint32_t n, uint32_t *out) {
    static const uint8_t zeros[CHUNK];
    int len = 0;
    if (coins->at == CHUNK) {
        if (EVP_EncryptUpdate(coins->stream, coins->chunk, &len, zeros, CHUNK) != 1 || len != CHUNK) return ORAM_CIPHER_FAILED;
        coins->at = 0;
    }
    const uint64_t x = ld64(coins->chunk + coins->at);
    coins->at += 8;
    /* x * n >> 64, in halves: C has no 128-bit integer */
    *out = (uint32_t)(((x >> 32) * n + (((x & 0xffffffffu) * n) >> 32)) >> 32);
    return ORAM_OK;
}
