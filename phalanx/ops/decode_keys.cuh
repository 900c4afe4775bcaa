// Where decoding's keys and values lie: runs of rows, in segments or in pages.
#pragma once

#include "phalanx/ops/cuda_kernels.cuh"
#include "phalanx/ops/decode_attention.h"

namespace phalanx::cuda {

/// Rows one behind the other: of all KV heads.
template <class T>
struct KvRun {
  const T* k;
  const T* v;
  int64_t rows;
};

/// A list of segments, in device memory.
template <class T>
struct SegmentKeys {
  struct Segment {
    const T* k;
    const T* v;
    int64_t rows;
    int64_t first_position;
  };
  const Segment* segments;
  int64_t count;

  /// What query row `row`, at `position`, sees: so many runs,
  __device__ int64_t runs(int64_t, int64_t) const { return count; }
  /// of which this is number i.
  __device__ KvRun<T> run(int64_t, int64_t position, int64_t i) const {
    const Segment s = segments[i];
    const int64_t seen = position - s.first_position + 1;
    return {s.k, s.v, seen < 0 ? 0 : min(seen, s.rows)};
  }
};

/// Pages of sequences.
template <class T>
struct PageKeys {
  T* k;
  T* v;
  const int32_t* table;      // [sequences, columns]
  const int32_t* sequences;  // of rows
  const int32_t* positions;
  int64_t sequence_count;
  int64_t columns;
  int64_t pages;
  int64_t page_rows;
  int64_t key_width;    // elements of a row of k
  int64_t value_width;  // of v
  Fault* fault;

  PageKeys(const KvPages& p, const KvPlaces& places)
      : k(p.k_SGd.device_data<T>()),
        v(p.v_SGd.device_data<T>()),
        table(p.table_BP.device_data<int32_t>()),
        sequences(places.sequences.device_data<int32_t>()),
        positions(places.positions.device_data<int32_t>()),
        sequence_count(p.table_BP.rows()),
        columns(p.table_BP.dim(1)),
        pages(p.count()),
        page_rows(p.page_rows),
        key_width(p.k_SGd.dim(1)),
        value_width(p.v_SGd.dim(1)),
        fault(current_stream().fault()) {}

  /// The first row of page number i of the row's sequence; −1, and a report, where there is none.
  __device__ int64_t page_begin(int64_t row, int64_t i) const {
    const int64_t sequence = sequences[row];
    const bool known = i >= 0 && i < columns && sequence >= 0 && sequence < sequence_count;
    const int64_t page = known ? table[sequence * columns + i] : -1;
    if (page >= 0 && page < pages) return page * page_rows;
    report(fault, FaultKind::position, i * page_rows, 0);
    return -1;
  }
  __device__ int64_t runs(int64_t, int64_t position) const {
    return position < 0 ? 0 : position / page_rows + 1;
  }
  __device__ KvRun<T> run(int64_t row, int64_t position, int64_t i) const {
    const int64_t begin = page_begin(row, i);
    if (begin < 0) return {k, v, 0};
    return {k + begin * key_width, v + begin * value_width, min(page_rows, position + 1 - i * page_rows)};
  }
};

}  // namespace phalanx::cuda
