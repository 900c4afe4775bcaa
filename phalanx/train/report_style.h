// How the report looks: the colours that the charts' classes (svg.h) stand for, in light and in dark.
#pragma once

#include <string_view>

namespace phalanx {

/// CSS. s0…s7 stroke and f0…f7 fill in the colours of Okabe and Ito, which colour-blind people can tell
/// apart; on0…on7 is the ink on them.
std::string_view report_style();

/// JavaScript: shows the values under the pointer, from the charts' data-* attributes.
std::string_view report_script();

}  // namespace phalanx
