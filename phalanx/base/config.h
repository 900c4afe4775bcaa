// Configuration: a table of fields says what a TOML file may hold. Reading it, `--set section.key=value`,
// printing, the list for --help and the messages about mistakes all come from that one table.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "phalanx/base/error.h"

namespace phalanx {

/// A value as the user wrote it.
using ConfigValue = std::variant<bool, int64_t, double, std::string>;

/// One of a few names, bound to an enum by ConfigSection::choice.
struct ConfigChoice {
  std::vector<std::string> names;
  std::function<void(size_t)> set;  ///< by index into names
  std::function<size_t()> get;
};

/// What a field writes to and is printed from; it outlives the table.
using ConfigVariable = std::variant<bool*, int*, int64_t*, uint64_t*, double*, std::string*, ConfigChoice>;

/// One key of a section.
class ConfigField {
 public:
  ConfigField(std::string section, std::string key, ConfigVariable variable, std::string doc);

  /// Bounds of a number; a value outside is an Error that tells them.
  ConfigField& at_least(double lowest);
  ConfigField& at_most(double highest);
  ConfigField& above(double limit);  ///< greater, not equal
  ConfigField& below(double limit);  ///< less, not equal

  const std::string& section() const { return section_; }
  const std::string& key() const { return key_; }
  const std::string& doc() const { return doc_; }
  std::string name() const { return section_ + "." + key_; }
  /// What it takes, for messages: "an integer of at least 1", "one of char, byte, bpe".
  std::string expected() const;
  /// The value now, as TOML: 12, 1e-05, "text".
  std::string text() const;
  /// True when it holds text, so that `--set` needs no quotes.
  bool takes_text() const;

  /// Takes a value. `where` begins the message ("demo.toml:7"). Error: wrong type, or out of range.
  void assign(const ConfigValue& value, const std::string& where);
  /// Where the value came from: "demo.toml:7" or "--set model.width=130"; "" for the default.
  const std::string& where() const { return where_; }

 private:
  struct Bound {
    double value;
    bool inclusive = true;
  };
  bool in_range(double value) const;
  // False when the value has the wrong type or is out of range.
  bool store(const ConfigValue& value);

  std::string section_;
  std::string key_;
  ConfigVariable variable_;
  std::string doc_;
  std::string where_;
  Bound lowest_ = {-std::numeric_limits<double>::infinity()};
  Bound highest_ = {std::numeric_limits<double>::infinity()};
};

/// A section and its fields, in the order in which they are printed.
class ConfigSection {
 public:
  ConfigSection(std::string name, std::string doc) : name_(std::move(name)), doc_(std::move(doc)) {}

  /// Adds a key for `variable`, whose value now is the default. Stays valid as long as the section.
  ConfigField& add(std::string key, ConfigVariable variable, std::string doc);
  /// Adds a key for an enum; each choice is its name in the file and its value.
  template <class E>
  ConfigField& choice(std::string key, E* variable,
                      std::initializer_list<std::pair<std::string_view, E>> choices, std::string doc);

  const std::string& name() const { return name_; }
  const std::string& doc() const { return doc_; }
  std::deque<ConfigField>& fields() { return fields_; }
  const std::deque<ConfigField>& fields() const { return fields_; }

 private:
  std::string name_;
  std::string doc_;
  std::deque<ConfigField> fields_;
};

/// All sections of a configuration.
class ConfigTable {
 public:
  /// Adds a section; the reference stays valid.
  ConfigSection& section(std::string name, std::string doc);

  /// Assigns what the TOML file says; keys that it leaves out keep their values. Error: the file cannot be
  /// read, is no TOML, has an unknown section or key (the nearest known one is named), a wrong type or a
  /// value out of range.
  void read_file(const std::string& path);
  /// The same from text; `name` stands for the file in messages.
  void read(std::string_view toml, const std::string& name);
  /// One override, "section.key=value". Error: as above.
  void set(const std::string& assignment);

  const std::deque<ConfigSection>& sections() const { return sections_; }
  /// The field of "section.key", which must exist.
  const ConfigField& field(std::string_view name) const;
  /// Where the user set the first field that `message` names ("demo.toml:7"); "" when it names none that was
  /// set. For checks that look at several fields.
  std::string place_of(std::string_view message) const;
  /// All values as a TOML file, which read() takes back unchanged.
  std::string toml() const;
  /// Every key with its value, what it takes and its meaning, for people.
  std::string listing() const;

 private:
  ConfigSection& find_section(std::string_view name, const std::string& where);
  ConfigField& find_field(ConfigSection& section, std::string_view key, const std::string& where);
  Error outside(std::string_view key, const std::string& where) const;

  std::deque<ConfigSection> sections_;
};

template <class E>
ConfigField& ConfigSection::choice(std::string key, E* variable,
                                   std::initializer_list<std::pair<std::string_view, E>> choices,
                                   std::string doc) {
  std::vector<std::string> names;
  std::vector<E> values;
  for (const auto& [name, value] : choices) {
    names.emplace_back(name);
    values.push_back(value);
  }
  ConfigChoice choice;
  choice.names = std::move(names);
  choice.set = [variable, values](size_t i) { *variable = values[i]; };
  choice.get = [variable, values] {
    size_t i = 0;
    while (i + 1 < values.size() && values[i] != *variable) ++i;
    return i;
  };
  return add(std::move(key), std::move(choice), std::move(doc));
}

}  // namespace phalanx
