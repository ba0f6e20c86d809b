// Byte maps of the FP8 KV caches: one trait a format, and the only place that knows where a token's bytes are.
// Torch-free, for the host and the device.
//
// A token is kNope dimensions as e4m3 codes, of which each kGroup share a scale, and kRope dimensions in bf16. Code
// times scale, in fp32, rounded to bf16 to the nearest is the value that every reader of a cache computes with. A slot
// is a token's place in a cache: page * page_size + place in the page.
#pragma once

#include <cstdint>

namespace dsa {

// How the tokens of a cache are spread over memory. Strides are in bytes and 64 bits wide: caches exceed 2^31 bytes.
struct KvCacheLayout {
  int page_size;  // tokens
  int64_t page_stride;
  int64_t token_stride;  // within a page; read for formats with kScalesInLine only, the others' is fixed
};

// Where a token's fields begin, in bytes from the cache's first.
struct KvFields {
  int64_t codes;   // kNope e4m3
  int64_t rope;    // kRope bf16
  int64_t scales;  // kGroups of kScaleBytes each
};

// DeepSeek-V3.2's: a token is a row.
//
//   | 0     codes, 512 e4m3 | 512  4 x fp32 scale | 528   rope, 64 bf16 | 656
//
// Rows are 16-byte aligned and no more.
struct KvV32 {
  static constexpr char const* kName = "v32";
  static constexpr int kNope = 512, kRope = 64, kHeadDim = kNope + kRope;
  static constexpr int kGroup = 128, kGroups = kNope / kGroup;
  static constexpr bool kScalesInLine = true;
  static constexpr int kScaleBytes = 4, kScalePad = 0;  // fp32
  static constexpr int kScalesAt = kNope, kRopeAt = kScalesAt + kGroups * kScaleBytes;
  static constexpr int kTokenBytes = kRopeAt + kRope * 2;

  static constexpr int64_t page_stride(int64_t page_size) { return page_size * kTokenBytes; }

  static constexpr KvFields fields(KvCacheLayout const& layout, int64_t page, int place) {
    int64_t const row = page * layout.page_stride + place * layout.token_stride;
    return {row, row + kRopeAt, row + kScalesAt};
  }
};

// A page of P tokens, with the scales at its end:
//
//   | 0     P x 576: | 0   codes, 448 e4m3 | 448   rope, 64 bf16 | 576     | P * 576   P x 8: 7 e8m0 scales, a pad byte
//   |
//
// Pages are multiples of 576 bytes apart when pack_kv_cache has made them. A copy may have less between them, so that
// rows are 8-byte aligned only: whoever reads 16 bytes looks at rows_are_aligned.
struct KvV4 {
  static constexpr char const* kName = "v4";
  static constexpr int kNope = 448, kRope = 64, kHeadDim = kNope + kRope;
  static constexpr int kGroup = 64, kGroups = kNope / kGroup;
  static constexpr bool kScalesInLine = false;
  static constexpr int kScaleBytes = 1, kScalePad = 1;  // e8m0
  static constexpr int kRopeAt = kNope, kRowBytes = kRopeAt + kRope * 2;
  static constexpr int kScaleRowBytes = kGroups * kScaleBytes + kScalePad;
  static constexpr int kTokenBytes = kRowBytes + kScaleRowBytes;

  static constexpr int64_t page_stride(int64_t page_size) {
    return (page_size * kTokenBytes + kRowBytes - 1) / kRowBytes * kRowBytes;
  }

  static constexpr KvFields fields(KvCacheLayout const& layout, int64_t page, int place) {
    int64_t const start = page * layout.page_stride;
    int64_t const row = start + int64_t(place) * kRowBytes;
    int64_t const scales = start + int64_t(layout.page_size) * kRowBytes + int64_t(place) * kScaleRowBytes;
    return {row, row + kRopeAt, scales};
  }
};

// No codes, no scales: DeepSeek-V3.2's token in bf16.
struct KvBf16 {
  static constexpr char const* kName = "bf16";
  static constexpr int kNope = 0, kRope = 576, kHeadDim = kNope + kRope;
  static constexpr int kGroup = 64, kGroups = 0, kScaleBytes = 4;
  static constexpr bool kScalesInLine = true;
  static constexpr int kRopeAt = 0, kTokenBytes = kRope * 2;

  static constexpr KvFields fields(KvCacheLayout const& layout, int64_t page, int place) {
    int64_t const row = page * layout.page_stride + place * layout.token_stride;
    return {row, row, row};
  }
};

// The lightning indexer's keys: head_dim e4m3 codes and an fp32 scale a token, the scales at the page's end.
//
//   | 0     P x head_dim e4m3 | P * head_dim   P x fp32 scale | P * (head_dim + 4)
//
// With an odd number of tokens a page, or any stride that a slice may have, pages begin at any byte: whoever reads more
// at a time looks at the address and at page_stride.
struct IndexerKeyCache {
  static constexpr int kScaleBytes = 4;
  int page_size;  // tokens
  int head_dim;
  int64_t page_stride;  // bytes

  // Bytes from the cache's first to a token's fields.
  constexpr int64_t codes(int64_t page, int place) const { return page * page_stride + int64_t(place) * head_dim; }
  constexpr int64_t scale(int64_t page, int place) const {
    return page * page_stride + int64_t(page_size) * head_dim + int64_t(place) * kScaleBytes;
  }
};

static_assert(KvV32::kTokenBytes == 656 && KvV32::kHeadDim == 576);
static_assert(KvV4::kTokenBytes == 584 && KvV4::kHeadDim == 512 && KvV4::kRowBytes == 576);

// `slot` is one of the cache's.
template <class Format>
constexpr KvFields kv_fields(KvCacheLayout const& layout, int slot) {
  unsigned const page = unsigned(slot) / unsigned(layout.page_size);
  return Format::fields(layout, page, int(unsigned(slot) - page * unsigned(layout.page_size)));
}

// Whether all codes and RoPE parts of a cache that begins at `address` can be read 16 bytes at a time, and v32's scales
// with them.
template <class Format>
constexpr bool rows_are_aligned(KvCacheLayout const& layout, uintptr_t address) {
  int64_t const bits = int64_t(address) | layout.page_stride | (Format::kScalesInLine ? layout.token_stride : 0);
  return bits % 16 == 0;
}

// The fp32 of an e8m0 scale, 2^(byte - 127), as bits. 0 is subnormal, 255 is NaN.
constexpr uint32_t e8m0_to_fp32_bits(uint32_t byte) {
  return byte == 0 ? 0x00400000u : byte == 255 ? 0x7fc00000u : byte << 23;
}

}  // namespace dsa
