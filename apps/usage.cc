#include "apps/usage.h"

#include <CLI/CLI.hpp>

#include "phalanx/base/nearest.h"
#include "phalanx/base/text.h"

namespace phalanx {
namespace {

std::string unknown(const char* kind, const std::string& word, const std::vector<std::string>& known) {
  return format("unknown {} \"{}\"; the nearest is {}", kind, word, nearest(word, known));
}

// What is wrong, for a mistake of the arguments of `command`.
std::string arguments_mistake(const CLI::App& command, const CLI::ParseError& error) {
  const std::vector<std::string> left = command.remaining();
  if (left.empty()) return error.what();
  if (!left[0].starts_with("-")) return format("unexpected argument \"{}\"", left[0]);
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return unknown("option", left[0], names);
}

}  // namespace

std::string usage_mistake(const CLI::App& app, const CLI::ParseError& error, const std::string& first) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  if (!chosen.empty()) {
    const std::string command = "phalanx " + chosen[0]->get_name();
    return format("{}: {}; {} --help has an example", command, arguments_mistake(*chosen[0], error), command);
  }
  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands.push_back(command->get_name());
  }
  const bool is_command = !first.empty() && !first.starts_with("-");
  const std::string mistake = is_command ? unknown("command", first, commands) : std::string(error.what());
  return format("phalanx: {}; phalanx --help lists the commands", mistake);
}

}  // namespace phalanx
