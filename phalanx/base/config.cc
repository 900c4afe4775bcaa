#include "phalanx/base/config.h"

#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <optional>
#include <utility>

#include "phalanx/base/check.h"
#include "phalanx/base/error.h"
#include "phalanx/base/file.h"
#include "phalanx/base/nearest.h"

namespace phalanx {
namespace {

constexpr uint64_t kLargestFile = uint64_t{1} << 20;  // bytes: larger ones are something else

// Shortest digits that read back as the same number, always a TOML float.
std::string text_of(double value) {
  std::array<char, 32> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
  std::string digits(buffer.data(), end);
  if (digits.find_first_of(".en") == std::string::npos) digits += ".0";
  return digits;
}

std::string text_of(std::string_view value) {
  std::string quoted = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      quoted += format("\\u{:04x}", static_cast<unsigned>(byte));
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string text_of(bool value) { return value ? "true" : "false"; }
std::string text_of(std::integral auto value) { return format("{}", value); }

std::string found(const ConfigValue& value) {
  if (const auto* v = std::get_if<bool>(&value)) return text_of(*v);
  if (const auto* v = std::get_if<int64_t>(&value)) return format("the integer {}", *v);
  if (const auto* v = std::get_if<double>(&value)) return "the number " + text_of(*v);
  return "the text " + text_of(std::get<std::string>(value));
}

std::string joined(const std::vector<std::string>& words) {
  std::string list;
  for (const std::string& word : words) list += (list.empty() ? "" : ", ") + word;
  return list;
}

// The node's scalar; nothing for arrays, tables and dates.
std::optional<ConfigValue> scalar(const toml::node& node) {
  if (const auto* v = node.as_boolean()) return ConfigValue(v->get());
  if (const auto* v = node.as_integer()) return ConfigValue(v->get());
  if (const auto* v = node.as_floating_point()) return ConfigValue(v->get());
  if (const auto* v = node.as_string()) return ConfigValue(v->get());
  return std::nullopt;
}

std::string_view type_name(const toml::node& node) {
  if (node.is_table()) return "a section";
  return node.is_array() ? "a list" : "a date or time";
}

std::string place(const std::string& file, const toml::source_region& source) {
  return format("{}:{}", file, source.begin.line);
}

toml::table parse(std::string_view text, const std::string& name) {
  try {
    return toml::parse(text, std::string_view(name));
  } catch (const toml::parse_error& e) {
    throw Error("{}: {}", place(name, e.source()), e.description());
  }
}

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(" \t") + 1 - begin));
}

// A value of --set: TOML, but text may stand without quotes.
ConfigValue command_line_value(const std::string& text, bool takes_text) {
  const bool quoted = text.starts_with('"') || text.starts_with('\'');
  if (takes_text && !quoted) return text;
  try {
    const toml::table root = toml::parse("value = " + text);
    return scalar(*root.get("value")).value_or(text);
  } catch (const toml::parse_error&) {
    return text;
  }
}

// Where `word` stands in the text, not as a part of a longer key.
size_t find_word(std::string_view text, std::string_view word) {
  size_t at = text.find(word);
  const auto goes_on = [](char c) { return c == '_' || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  while (at != std::string_view::npos && at + word.size() < text.size() && goes_on(text[at + word.size()])) {
    at = text.find(word, at + 1);
  }
  return at;
}

template <class Names, class Name>
std::vector<std::string> names_of(const Names& items, Name name) {
  std::vector<std::string> names;
  for (const auto& item : items) names.push_back((item.*name)());
  return names;
}

}  // namespace

ConfigField::ConfigField(std::string section, std::string key, ConfigVariable variable, std::string doc)
    : section_(std::move(section)),
      key_(std::move(key)),
      variable_(std::move(variable)),
      doc_(std::move(doc)) {}

ConfigField& ConfigField::at_least(double lowest) {
  lowest_ = {lowest, true};
  return *this;
}
ConfigField& ConfigField::at_most(double highest) {
  highest_ = {highest, true};
  return *this;
}
ConfigField& ConfigField::above(double limit) {
  lowest_ = {limit, false};
  return *this;
}
ConfigField& ConfigField::below(double limit) {
  highest_ = {limit, false};
  return *this;
}

bool ConfigField::in_range(double value) const {
  const bool above = lowest_.inclusive ? value >= lowest_.value : value > lowest_.value;
  const bool below = highest_.inclusive ? value <= highest_.value : value < highest_.value;
  return above && below && std::isfinite(value);
}

bool ConfigField::takes_text() const {
  return std::holds_alternative<std::string*>(variable_) || std::holds_alternative<ConfigChoice>(variable_);
}

std::string ConfigField::expected() const {
  if (std::holds_alternative<bool*>(variable_)) return "true or false";
  if (std::holds_alternative<std::string*>(variable_)) return "text";
  if (const auto* choice = std::get_if<ConfigChoice>(&variable_)) return "one of " + joined(choice->names);
  const bool real = std::holds_alternative<double*>(variable_);
  std::string text = real ? "a number" : "an integer";
  const auto bound = [&](const Bound& b, const char* inclusive, const char* exclusive) {
    if (!std::isfinite(b.value)) return;
    const std::string number = real ? text_of(b.value) : format("{}", static_cast<int64_t>(b.value));
    text += format(" {} {}", b.inclusive ? inclusive : exclusive, number);
  };
  bound(lowest_, "of at least", "above");
  if (std::isfinite(lowest_.value) && std::isfinite(highest_.value)) text += " and";
  bound(highest_, "at most", "below");
  return text;
}

std::string ConfigField::text() const {
  if (const auto* choice = std::get_if<ConfigChoice>(&variable_))
    return text_of(choice->names[choice->get()]);
  return std::visit(
      [](const auto& v) -> std::string {
        if constexpr (!std::is_same_v<decltype(v), const ConfigChoice&>) return text_of(*v);
        return {};
      },
      variable_);
}

bool ConfigField::store(const ConfigValue& value) {
  const auto* text = std::get_if<std::string>(&value);
  const auto* integer = std::get_if<int64_t>(&value);
  if (auto* choice = std::get_if<ConfigChoice>(&variable_)) {
    const auto at = text != nullptr ? std::ranges::find(choice->names, *text) : choice->names.end();
    if (at == choice->names.end()) return false;
    choice->set(static_cast<size_t>(at - choice->names.begin()));
    return true;
  }
  if (auto** target = std::get_if<std::string*>(&variable_))
    return text != nullptr && (**target = *text, true);
  if (auto** target = std::get_if<bool*>(&variable_)) {
    const auto* flag = std::get_if<bool>(&value);
    return flag != nullptr && (**target = *flag, true);
  }
  if (auto** target = std::get_if<double*>(&variable_)) {
    const auto* real = std::get_if<double>(&value);
    if (real == nullptr && integer == nullptr) return false;
    const double number = real != nullptr ? *real : static_cast<double>(*integer);
    return in_range(number) && (**target = number, true);
  }
  if (integer == nullptr || !in_range(static_cast<double>(*integer))) return false;
  const auto narrow = [n = *integer]<class T>(T* target) {
    return std::in_range<T>(n) && (*target = static_cast<T>(n), true);
  };
  if (auto** target = std::get_if<int*>(&variable_)) return narrow(*target);
  if (auto** target = std::get_if<int64_t*>(&variable_)) return narrow(*target);
  return narrow(std::get<uint64_t*>(variable_));
}

void ConfigField::assign(const ConfigValue& value, const std::string& where) {
  if (!store(value)) {
    std::string message = format("{}: {}: expected {}, found {}", where, name(), expected(), found(value));
    const auto* choice = std::get_if<ConfigChoice>(&variable_);
    const auto* text = std::get_if<std::string>(&value);
    if (choice != nullptr && text != nullptr) {
      message += format("; the nearest is \"{}\"", nearest(*text, choice->names));
    }
    throw Error("{}", message);
  }
  where_ = where;
}

ConfigField& ConfigSection::add(std::string key, ConfigVariable variable, std::string doc) {
  fields_.emplace_back(name_, std::move(key), std::move(variable), std::move(doc));
  return fields_.back();
}

ConfigSection& ConfigTable::section(std::string name, std::string doc) {
  sections_.emplace_back(std::move(name), std::move(doc));
  return sections_.back();
}

ConfigSection& ConfigTable::find_section(std::string_view name, const std::string& where) {
  const auto at = std::ranges::find(sections_, name, &ConfigSection::name);
  if (at != sections_.end()) return *at;
  throw Error("{}: unknown section [{}]; the nearest known section is [{}]", where, name,
              nearest(name, names_of(sections_, &ConfigSection::name)));
}

ConfigField& ConfigTable::find_field(ConfigSection& section, std::string_view key, const std::string& where) {
  const auto at = std::ranges::find(section.fields(), key, &ConfigField::key);
  if (at != section.fields().end()) return *at;
  for (const ConfigSection& other : sections_) {
    if (std::ranges::find(other.fields(), key, &ConfigField::key) != other.fields().end()) {
      throw Error("{}: unknown key \"{}\" in [{}]; it belongs to [{}]", where, key, section.name(),
                  other.name());
    }
  }
  throw Error("{}: unknown key \"{}\" in [{}]; the nearest known key is \"{}\"", where, key, section.name(),
              nearest(key, names_of(section.fields(), &ConfigField::key)));
}

Error ConfigTable::outside(std::string_view key, const std::string& where) const {
  for (const ConfigSection& section : sections_) {
    if (std::ranges::find(section.fields(), key, &ConfigField::key) != section.fields().end()) {
      return Error("{}: key \"{}\" stands outside every section; it belongs below [{}]", where, key,
                   section.name());
    }
  }
  return Error("{}: key \"{}\" stands outside every section; the nearest known section is [{}]", where, key,
               nearest(key, names_of(sections_, &ConfigSection::name)));
}

void ConfigTable::read_file(const std::string& path) { read(read_text(path, kLargestFile), path); }

void ConfigTable::read(std::string_view toml, const std::string& name) {
  const toml::table root = parse(toml, name);
  for (const auto& [section_key, section_node] : root) {
    const std::string where = place(name, section_key.source());
    const auto* content = section_node.as_table();
    if (content == nullptr) throw outside(section_key.str(), where);
    ConfigSection& section = find_section(section_key.str(), where);
    for (const auto& [key, node] : *content) {
      const std::string at = place(name, key.source());
      ConfigField& field = find_field(section, key.str(), at);
      const std::optional<ConfigValue> value = scalar(node);
      if (!value)
        throw Error("{}: {}: expected {}, found {}", at, field.name(), field.expected(), type_name(node));
      field.assign(*value, at);
    }
  }
}

void ConfigTable::set(const std::string& assignment) {
  const size_t equals = assignment.find('=');
  const size_t dot = assignment.find('.');
  if (equals == std::string::npos || dot > equals) {
    throw Error("--set {}: expected section.key=value, as in --set train.steps=100", assignment);
  }
  const std::string where = "--set " + assignment;
  ConfigSection& section = find_section(trimmed(assignment.substr(0, dot)), where);
  ConfigField& field = find_field(section, trimmed(assignment.substr(dot + 1, equals - dot - 1)), where);
  field.assign(command_line_value(trimmed(assignment.substr(equals + 1)), field.takes_text()), where);
}

const ConfigField& ConfigTable::field(std::string_view name) const {
  for (const ConfigSection& section : sections_) {
    for (const ConfigField& field : section.fields()) {
      if (field.name() == name) return field;
    }
  }
  PHX_CHECK(false, "no field {}", name);
  return sections_.front().fields().front();
}

std::string ConfigTable::place_of(std::string_view message) const {
  std::string place;
  size_t first = std::string_view::npos;
  for (const ConfigSection& section : sections_) {
    for (const ConfigField& field : section.fields()) {
      const size_t at = find_word(message, field.name());
      if (field.where().empty() || at >= first) continue;
      first = at;
      place = field.where();
    }
  }
  return place;
}

std::string ConfigTable::toml() const {
  std::string text;
  for (const ConfigSection& section : sections_) {
    text += format("{}[{}]\n", text.empty() ? "" : "\n", section.name());
    for (const ConfigField& field : section.fields()) text += format("{} = {}\n", field.key(), field.text());
  }
  return text;
}

std::string ConfigTable::listing() const {
  std::string text;
  for (const ConfigSection& section : sections_) {
    text += format("{}[{}]  {}\n", text.empty() ? "" : "\n", section.name(), section.doc());
    for (const ConfigField& field : section.fields()) {
      text += format("  {:<34} {} ({})\n", field.key() + " = " + field.text(), field.doc(), field.expected());
    }
  }
  return text;
}

}  // namespace phalanx
