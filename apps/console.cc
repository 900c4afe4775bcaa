#include "apps/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstddef>

#include "phalanx/base/error.h"

namespace phalanx {
namespace {

volatile std::sig_atomic_t interrupt_count = 0;

void on_interrupt(int signal) {
  interrupt_count = interrupt_count + 1;
  if (interrupt_count > 1) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

// As much of `text` as fits into one line of the terminal: what wraps cannot be rewritten.
std::string fitted(const std::string& text, std::FILE* terminal) {
  winsize size{};
  if (ioctl(fileno(terminal), TIOCGWINSZ, &size) != 0 || size.ws_col < 2) return text;
  return text.substr(0, size.ws_col - size_t{1});
}

}  // namespace

ProgressLine::ProgressLine(std::FILE* file) : file_(file), terminal_(isatty(fileno(file)) == 1) {}

ProgressLine::~ProgressLine() { end_line(); }

void ProgressLine::show(const std::string& text) {
  const auto now = std::chrono::steady_clock::now();
  const std::chrono::milliseconds pause(terminal_ ? 100 : 5000);
  if (now - shown_ < pause) return;
  shown_ = now;
  if (terminal_) {
    std::fprintf(file_, "\r\033[K%s", fitted(text, file_).c_str());
  } else {
    std::fprintf(file_, "%s\n", text.c_str());
  }
  std::fflush(file_);
  open_ = terminal_;
}

void ProgressLine::print(const std::string& text) {
  end_line();
  std::fprintf(file_, "%s\n", text.c_str());
  std::fflush(file_);
}

void ProgressLine::end_line() {
  if (open_) std::fputs("\n", file_);
  open_ = false;
}

void finish_output() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  throw Error("standard output could not be written in full: is its disk full?");
}

void note(const std::string& text) { std::fprintf(stderr, "phalanx: %s\n", text.c_str()); }

// On a stack of its own: kernels of oneDNN use the stack pointer for other things, so that a
// handler on the ordinary stack would write over the heap. The main thread gets these signals, also in forked
// ranks.
void catch_interrupts() {
  static std::array<std::byte, 64 << 10> memory;
  stack_t stack{};
  stack.ss_sp = memory.data();
  stack.ss_size = memory.size();
  sigaltstack(&stack, nullptr);
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_ONSTACK | SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

bool interrupted() { return interrupt_count > 0; }

}  // namespace phalanx
