"""Keys: from the user's key or passphrase to the sealing keys of each generation.

The store's own random *secret* is wrapped in the header by the user's key. From the secret come, by HKDF-SHA256: per generation
a sealing key for the kernel, per generation a key for the client state, and the key of the tag PRF.
A generation has a random 256-bit salt, drawn at every open, so no crash, clone or restored copy can repeat (key, nonce).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from oram.errors import IntegrityError, ParameterError, StaleStateError, WrongKeyError
from oram.kernels.base import MAX_GENERATION

KEY_SIZE = 32
ARGON2 = {"memory_kib": 65536, "iterations": 3, "lanes": 4}  # RFC 9106, second recommended option
_PREFIX = struct.Struct("<IQ")  # generation, counter
OVERHEAD = _PREFIX.size + 16  # bytes that sealing adds to a piece of client state
MAGIC = b"ORAM\x00\x01\r\n"


def generate_key() -> bytes:
    """32 random bytes: the key of a store. Keep it; nothing can be read without it. Cost: no access. Leaks: nothing."""
    return os.urandom(KEY_SIZE)


def derive(secret: bytes, salt: bytes, label: str, context: bytes = b"") -> bytes:
    """32 bytes for one purpose, by HKDF-SHA256."""
    return HKDF(SHA256(), KEY_SIZE, salt, b"oram/1 " + label.encode() + b"\0" + context).derive(secret)


@dataclass(frozen=True, slots=True)
class Credential:
    """What the user opens a store with: a key, or a passphrase that Argon2id turns into one."""

    key: bytes | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, key: bytes | None, passphrase: str | None) -> Credential:
        """ParameterError unless exactly one is given and the key has 32 bytes."""
        if (key is None) == (passphrase is None):
            raise ParameterError("give either key= (32 bytes) or passphrase=")
        if key is not None and (not isinstance(key, bytes | bytearray | memoryview) or len(key) != KEY_SIZE):
            raise ParameterError("key must be 32 bytes, as from oram.generate_key()")
        if passphrase is not None and (not isinstance(passphrase, str) or not passphrase):
            raise ParameterError("passphrase must be a non-empty str")
        return cls(None if key is None else bytes(key), passphrase)

    def new_kdf(self) -> dict[str, Any]:
        """Public parameters of the derivation, for a new header."""
        salt = os.urandom(16).hex()
        return (
            {"name": "hkdf-sha256", "salt": salt}
            if self.key is not None
            else {"name": "argon2id", "salt": salt, **ARGON2}
        )

    def wrapping_key(self, kdf: Mapping[str, Any]) -> bytes:
        """The key that wraps the store's secret. WrongKeyError if the header wants the other kind of credential."""
        salt = bytes.fromhex(kdf["salt"])
        if kdf["name"] == "hkdf-sha256":
            if self.key is None:
                raise WrongKeyError("this store opens with a key, not with a passphrase")
            return derive(self.key, salt, "wrap")
        if kdf["name"] != "argon2id":
            raise IntegrityError("the header names an unknown key derivation")
        if self.passphrase is None:
            raise WrongKeyError("this store opens with a passphrase, not with a key")
        memory, iterations, lanes = kdf["memory_kib"], kdf["iterations"], kdf["lanes"]
        if not (8 * lanes <= memory <= 1 << 22 and 1 <= iterations <= 1 << 10 and 1 <= lanes <= 64):
            raise IntegrityError("the header asks for unreasonable Argon2id parameters")
        kdf_object = Argon2id(salt=salt, length=KEY_SIZE, iterations=iterations, lanes=lanes, memory_cost=memory)
        return kdf_object.derive(self.passphrase.encode())


@dataclass(frozen=True, slots=True)
class Header:
    """The public description of a store, authenticated together with its wrapped secret.

    public: what ``oram info`` shows without a key. secret: 32 bytes, None while locked.
    """

    public: dict[str, Any]
    secret: bytes | None = field(default=None, repr=False)

    def seal(self, credential: Credential) -> bytes:
        """The header as stored; the secret is wrapped under a fresh derivation of the credential."""
        assert self.secret is not None
        public = {**self.public, "kdf": credential.new_kdf()}
        text = MAGIC + json.dumps(public, sort_keys=True).encode()
        nonce = os.urandom(12)  # the wrapping key is fresh too: its salt is
        box = nonce + AESGCM(credential.wrapping_key(public["kdf"])).encrypt(nonce, self.secret, text)
        return struct.pack("<I", len(text)) + text + box

    @classmethod
    def peek(cls, blob: bytes) -> Header:
        """The public part, not authenticated. IntegrityError if it is no header."""
        text, _ = cls._split(blob)
        try:
            public = json.loads(text[len(MAGIC) :])
            if public["format"] != 1 or not isinstance(public["kdf"], dict):
                raise IntegrityError("this store was written by another format version")
            kdf = public.pop("kdf")
            words = [
                word for part in (public, kdf) for pair in part.items() for word in pair if not isinstance(word, int)
            ]
            public["kdf"] = kdf
            if not all(isinstance(word, str) and word.isascii() and word.isprintable() for word in words):
                raise IntegrityError("the header is damaged")  # nobody has authenticated it, and somebody may print it
        except (ValueError, KeyError, TypeError, RecursionError):
            raise IntegrityError("the header is damaged") from None
        return cls(public)

    @classmethod
    def open(cls, blob: bytes, credential: Credential) -> Header:
        """Authenticate and unwrap. WrongKeyError if the credential is another one, or the header was changed."""
        text, box = cls._split(blob)
        public = cls.peek(blob).public
        try:
            secret = AESGCM(credential.wrapping_key(public["kdf"])).decrypt(box[:12], box[12:], text)
        except (InvalidTag, ValueError, KeyError, TypeError):
            raise WrongKeyError("wrong key or passphrase (or the header was changed)") from None
        return cls(public, secret)

    @staticmethod
    def _split(blob: bytes) -> tuple[bytes, bytes]:
        if len(blob) < 4:
            raise IntegrityError("the header is damaged")
        end = 4 + int.from_bytes(blob[:4], "little")
        text, box = blob[4:end], blob[end : end + 12 + KEY_SIZE + 16]
        if not text.startswith(MAGIC) or len(box) != 12 + KEY_SIZE + 16:
            raise IntegrityError("the header is damaged")
        return text, box


class Keyring:
    """Everything derived from one store's secret. ``salts`` maps generation to its salt, and is client state."""

    def __init__(self, secret: bytes, store_id: bytes, incarnation: int, cipher: str, salts: dict[int, bytes]) -> None:
        self._secret, self.salts = secret, salts
        self._context = store_id + struct.pack("<I", incarnation) + cipher.encode()
        self._tag_key = derive(secret, store_id, "tag")
        self._state: dict[int, AESGCM] = {}
        self.current = 0
        self.counter = 0  # next nonce of client state under it
        self.blocks = 0  # AES blocks of client state sealed under the current generation

    def new_generation(self) -> tuple[int, bytes]:
        """Draw the next generation. Its salt has to be durable before anything is sealed under it."""
        generation, salt = max(self.salts, default=0) + 1, os.urandom(32)
        if generation > MAX_GENERATION:
            raise ParameterError("this store was opened 2^31 times: no generation is left")
        return generation, salt

    def start(self, generation: int, salt: bytes) -> None:
        """Seal client state under this generation from now on."""
        self.salts[generation] = salt
        self.current, self.counter, self.blocks = generation, 0, 0

    def undo(self, generation: int, before: int, counter: int, blocks: int) -> None:
        """Go on under the generation before: it is not known whether the salt of this one became durable."""
        del self.salts[generation]
        self._state.pop(generation, None)
        self.current, self.counter, self.blocks = before, counter, blocks

    def _salt(self, generation: int) -> bytes:
        if generation not in self.salts:
            raise StaleStateError("the client state is older than the server's part of the store")
        return self.salts[generation]

    def page_key(self, generation: int) -> bytes:
        """The kernel's sealing key for pages of one generation; it binds format, store, incarnation, cipher and generation."""
        return self._derive(generation, "pages")

    def _derive(self, generation: int, label: str) -> bytes:
        # the number is bound as well: else another generation's salt could be put in the place of this one
        return derive(self._secret, self._salt(generation), label, self._context + struct.pack("<I", generation))

    def salts_digest(self, generations: int) -> bytes:
        """SHA-256 over the salts of the first generations, in order. IntegrityError if one is missing."""
        digest = hashlib.sha256()
        for generation in range(1, generations + 1):
            if generation not in self.salts:
                raise IntegrityError("the client state was changed")
            digest.update(self.salts[generation])
        return digest.digest()

    def tag(self, key: bytes) -> bytes:
        """128-bit PRF of a user's key, by keyed BLAKE2b."""
        return hashlib.blake2b(key, digest_size=16, key=self._tag_key).digest()

    def initial_positions(self, size: int) -> bytes:
        """A keystream of ``size`` bytes, the same at every call: where the blocks of a new incarnation are. AES-256-CTR.

        It comes from the random salt of the first generation, so that an incarnation that is made twice, because the first was
        rolled back, does not begin at the same places.
        """
        return self._keystream("positions", size)

    def placement(self, size: int) -> bytes:
        """Another one: which shard each block of a new incarnation belongs to."""
        return self._keystream("placement", size)

    def _keystream(self, label: str, size: int) -> bytes:
        encryptor = Cipher(AES(self._derive(1, label)), CTR(bytes(16))).encryptor()
        return encryptor.update(bytes(size))

    def hash_key(self, shard: int = 0) -> bytes:
        """The key of Cuckoo's hash functions, from the random salt of the first generation: each incarnation has its own, and each of several shards."""
        return self._derive(1, f"hash {shard}" if shard else "hash")

    def _aead(self, generation: int) -> AESGCM:
        if generation not in self._state:
            self._state[generation] = AESGCM(self._derive(generation, "state"))
        return self._state[generation]

    def seal(self, what: bytes, data: bytes) -> bytes:
        """Seal client state; ``what`` says which piece it is and is bound to it."""
        prefix = _PREFIX.pack(self.current, self.counter)
        self.counter += 1
        self.blocks += len(data) // 16 + 4
        return prefix + self._aead(self.current).encrypt(prefix[4:] + bytes(4), data, what)

    def open(self, what: bytes, blob: bytes) -> bytes:
        """Open client state. IntegrityError; StaleStateError if it was sealed under a generation unknown here."""
        try:
            generation, _ = _PREFIX.unpack_from(blob)
            return self._aead(generation).decrypt(blob[4 : _PREFIX.size] + bytes(4), blob[_PREFIX.size :], what)
        except (InvalidTag, struct.error, ValueError):
            raise IntegrityError("the client state was changed") from None
