// Text for people: a progress line that is rewritten on a terminal and printed now and then elsewhere.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

namespace phalanx {

class ProgressLine {
 public:
  explicit ProgressLine(std::FILE* file);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  /// Shows `text`: at most ten times a second on a terminal, every five seconds elsewhere.
  void show(const std::string& text);
  /// A line that stays.
  void print(const std::string& text);

 private:
  void end_line();

  std::FILE* file_;
  bool terminal_;
  bool open_ = false;  // the cursor stands behind a line that may be rewritten
  std::chrono::steady_clock::time_point shown_{};
};

/// Error: something that went to standard output was not written (a full disk).
void finish_output();

/// A line on standard error: something to know that is not an error.
void note(const std::string& text);

/// True once the user has pressed Ctrl-C (or SIGTERM came); a second time ends the process at once.
void catch_interrupts();
bool interrupted();

}  // namespace phalanx
