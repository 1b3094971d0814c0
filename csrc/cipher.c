/* Ciphers as tables of functions. No cipher is implemented here. */
#include <limits.h>

#include <openssl/evp.h>

#include "batch.h"
#include "bytes.h"
#include "oram.h"

typedef struct {
    EVP_CIPHER_CTX *enc, *dec;
} gcm;

/* nonce and associated data: 96-bit and 64-bit little-endian integers */
static void gcm_nonce(uint64_t counter, uint8_t nonce[12]) {
    st64(nonce, counter);
    memset(nonce + 8, 0, 4);
}

void oram_gcm_free(void *ctx) {
    gcm *g = ctx;
    if (g == NULL) return;
    EVP_CIPHER_CTX_free(g->enc);
    EVP_CIPHER_CTX_free(g->dec);
    OPENSSL_free(g);
}

void *oram_gcm_new(const uint8_t *key) {
    gcm *g = OPENSSL_zalloc(sizeof *g);
    if (g == NULL) return NULL;
    g->enc = EVP_CIPHER_CTX_new();
    g->dec = EVP_CIPHER_CTX_new();
    if (g->enc == NULL || g->dec == NULL || EVP_EncryptInit_ex(g->enc, EVP_aes_256_gcm(), NULL, key, NULL) != 1 ||
        EVP_DecryptInit_ex(g->dec, EVP_aes_256_gcm(), NULL, key, NULL) != 1) {
        oram_gcm_free(g);
        return NULL;
    }
    return g;
}

static int gcm_seal(void *ctx, uint64_t counter, uint64_t slot, const uint8_t *plain, size_t len, uint8_t *sealed) {
    EVP_CIPHER_CTX *c = ((gcm *)ctx)->enc;
    uint8_t nonce[12], ad[8];
    int n = 0;
    if (len > INT_MAX) return ORAM_CIPHER_FAILED;
    gcm_nonce(counter, nonce);
    st64(ad, slot);
    if (EVP_EncryptInit_ex(c, NULL, NULL, NULL, nonce) != 1 || EVP_EncryptUpdate(c, NULL, &n, ad, 8) != 1 ||
        EVP_EncryptUpdate(c, sealed, &n, plain, (int)len) != 1 || EVP_EncryptFinal_ex(c, sealed + len, &n) != 1 ||
        EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, ORAM_TAG, sealed + len) != 1)
        return ORAM_CIPHER_FAILED;
    return ORAM_OK;
}

static int gcm_open(void *ctx, uint64_t counter, uint64_t slot, const uint8_t *sealed, size_t len, uint8_t *plain) {
    EVP_CIPHER_CTX *c = ((gcm *)ctx)->dec;
    uint8_t nonce[12], ad[8], tag[ORAM_TAG], none[ORAM_TAG];
    int n = 0;
    if (len > INT_MAX) return ORAM_CIPHER_FAILED;
    gcm_nonce(counter, nonce);
    st64(ad, slot);
    memcpy(tag, sealed + len, ORAM_TAG);
    if (EVP_DecryptInit_ex(c, NULL, NULL, NULL, nonce) != 1 || EVP_DecryptUpdate(c, NULL, &n, ad, 8) != 1 ||
        EVP_DecryptUpdate(c, plain, &n, sealed, (int)len) != 1 ||
        EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, ORAM_TAG, tag) != 1)
        return ORAM_CIPHER_FAILED;
    return EVP_DecryptFinal_ex(c, none, &n) == 1 ? ORAM_OK : ORAM_TAMPERED;
}

const oram_cipher *oram_gcm(void) {
    static const oram_cipher cipher = {gcm_seal, gcm_open};
    return &cipher;
}

static int detached_seal(void *ctx, uint64_t counter, uint64_t slot, const uint8_t *plain, size_t len, uint8_t *sealed) {
    const oram_detached *d = ctx;
    uint8_t nonce[32] = {0}, ad[8];
    st64(nonce, counter);
    st64(ad, slot);
    return d->encrypt(sealed, sealed + len, ORAM_TAG, plain, len, ad, 8, nonce, d->key) == 0 ? ORAM_OK : ORAM_CIPHER_FAILED;
}

static int detached_open(void *ctx, uint64_t counter, uint64_t slot, const uint8_t *sealed, size_t len, uint8_t *plain) {
    const oram_detached *d = ctx;
    uint8_t nonce[32] = {0}, ad[8];
    st64(nonce, counter);
    st64(ad, slot);
    return d->decrypt(plain, sealed, len, sealed + len, ORAM_TAG, ad, 8, nonce, d->key) == 0 ? ORAM_OK : ORAM_TAMPERED;
}

const oram_cipher *oram_detached_cipher(void) {
    static const oram_cipher cipher = {detached_seal, detached_open};
    return &cipher;
}

int oram_seal_many(const oram_cipher *cipher, void *ctx, uint64_t counter, uint32_t n, size_t len, const uint8_t *plain, uint8_t *sealed) {
    for (uint32_t i = 0; i < n; i++) {
        int rc = cipher->seal(ctx, counter + i, i, plain + i * len, len, sealed + i * (len + ORAM_TAG));
        if (rc != ORAM_OK) return rc;
    }
    return ORAM_OK;
}

int oram_open_many(const oram_cipher *cipher, void *ctx, uint64_t counter, uint32_t n, size_t len, const uint8_t *sealed, uint8_t *plain) {
    for (uint32_t i = 0; i < n; i++) {
        int rc = cipher->open(ctx, counter + i, i, sealed + i * (len + ORAM_TAG), len, plain + i * len);
        if (rc != ORAM_OK) return rc;
    }
    return ORAM_OK;
}

int oram_open_slots(const oram_keys *keys, uint32_t n, size_t len, const uint64_t *slots, const uint64_t *refs, const uint8_t *sealed,
                    const uint8_t *present, uint8_t *plain) {
    int bad = ORAM_OK;
    for (uint32_t i = 0; i < n; i++) {
        const int rc = open_ref(keys, slots[i], refs[i], sealed + i * (len + ORAM_TAG), present[i], len, plain + i * len);
        if (rc > 0) return rc;
        bad |= rc;
    }
    return bad == ORAM_OK ? ORAM_OK : ORAM_TAMPERED;
}

int oram_seal_slots(oram_keys *keys, uint32_t n, size_t len, const uint64_t *slots, const int64_t *source, const uint8_t *rows, uint8_t *sealed) {
    const uint64_t counter = keys->counter;
    if (counter + n > (uint64_t)1 << ORAM_COUNTER_BITS) return ORAM_CIPHER_FAILED;
    keys->counter += n; /* before the first seal */
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *to = sealed + i * (len + ORAM_TAG);
        const uint8_t *from = to;
        if (source[i] < 0)
            memset(to, 0, len);
        else
            from = rows + (size_t)source[i] * len;
        const int rc = keys->cipher->seal(keys->contexts[keys->current], counter + i, slots[i], from, len, to);
        if (rc != ORAM_OK) return rc;
    }
    return ORAM_OK;
}

int oram_floor(const oram_cipher *cipher, void *ctx, int warm, uint32_t n, const uint64_t *slots, size_t len, uint8_t *region, uint8_t *plain) {
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *sealed = region + slots[i] * (len + ORAM_TAG);
        int rc = warm ? cipher->open(ctx, 0, slots[i], sealed, len, plain + i * len) : ORAM_OK;
        if (rc != ORAM_OK) return rc;
    }
    for (uint32_t i = 0; i < n; i++) {
        int rc = cipher->seal(ctx, 0, slots[i], plain + i * len, len, region + slots[i] * (len + ORAM_TAG));
        if (rc != ORAM_OK) return rc;
    }
    return ORAM_OK;
}
