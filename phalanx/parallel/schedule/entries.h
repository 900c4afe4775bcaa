// The kinds of schedules, each in a file of its own that says its bubble, its peak and its paper.
#pragma once

#include "phalanx/parallel/schedule/schedule.h"

namespace phalanx {

extern const ScheduleEntry kSequential;   ///< sequential.cc
extern const ScheduleEntry kOverlapped;   ///< overlapped.cc
extern const ScheduleEntry kGpipe;        ///< gpipe.cc
extern const ScheduleEntry k1f1b;         ///< one_f_one_b.cc
extern const ScheduleEntry kInterleaved;  ///< interleaved.cc
extern const ScheduleEntry kZbH1;         ///< zb_h1.cc
extern const ScheduleEntry kZbV;          ///< zb_v.cc
extern const ScheduleEntry kDualPipe;     ///< dualpipe.cc
extern const ScheduleEntry kDualPipeV;    ///< dualpipe_v.cc

/// The i-th number that goes backward, where microbatches do in order, each from its last slice on.
int backward_slice(int i, int slices);
/// Each step as one of each slice: backwards and weight gradients from the last one on, and of an overlapped
/// pair the first slice of one microbatch with the last of the other, and so on. slices.cc.
Steps cut_into_slices(const Steps& whole, int slices);

/// One rank's list of DualPipe or DualPipeV.
struct DualPipeRank {
  int half = 1;                   ///< ranks from the outermost to the middle one
  int depth = 0;                  ///< 0 on the outermost, half - 1 on the middle rank
  int pairs = 1;                  ///< of overlapped pairs in the steady part
  int chunk_of_phase_0 = 0;       ///< phase 1 has the other one
  int first_microbatch_of_1 = 0;  ///< of chunk 1; that of chunk 0 is 0
};
/// dualpipe.cc.
Steps dualpipe_steps(const DualPipeRank& rank);

}  // namespace phalanx
