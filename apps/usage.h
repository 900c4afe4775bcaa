// What to tell a user whose command line cannot be parsed.
#pragma once

#include <string>

namespace CLI {
class App;
class ParseError;
}  // namespace CLI

namespace phalanx {

/// One sentence: the command, what is wrong with its arguments, the nearest known name, and where help is.
/// `first` is the first argument, "" if there is none.
std::string usage_mistake(const CLI::App& app, const CLI::ParseError& error, const std::string& first);

}  // namespace phalanx
