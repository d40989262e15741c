# SPDX-License-Identifier: Apache-2.0
"""XXH3 as FORMAT.md writes it, from the C library that bitdelta links."""
import ctypes
import ctypes.util

library = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")


class Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


library.XXH3_128bits.restype, library.XXH3_64bits.restype = Hash128, ctypes.c_uint64
library.XXH3_128bits.argtypes = library.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]


def xxh128(data):
    h = library.XXH3_128bits(data, len(data))
    return f"{h.high:016x}{h.low:016x}"


def xxh64(data):
    return f"{library.XXH3_64bits(data, len(data)):016x}"
