# phalanx_options: how every file of ours is compiled. Linked PRIVATE by all our targets.
add_library(phalanx_options INTERFACE)
target_include_directories(phalanx_options INTERFACE "${PROJECT_SOURCE_DIR}")

set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1")
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")

set(_warnings
  -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wvla -Wundef
  -Wextra-semi -Wcast-qual -Wformat=2 -Wsuggest-override -Werror
  -Wno-missing-field-initializers  # designated initialisers may leave members at their defaults
  -Wno-restrict)  # g++ 12 warns falsely on std::string operator+ (GCC bug 105651)
if(PHALANX_SANITIZE)
  # Instrumentation makes the flow warnings of g++ report paths that do not exist.
  list(APPEND _warnings -Wno-maybe-uninitialized -Wno-array-bounds
       -Wno-stringop-overflow)
endif()

set(_code
  # No product and sum is fused behind our back: the same bits on every machine, scalar or vector.
  # Where an FMA is wanted it is written (Highway's MulAdd).
  -ffp-contract=off
  -fno-math-errno
  # __FILE__ and debug information read "phalanx/comm/group.cc" wherever the clone lies.
  -ffile-prefix-map=${PROJECT_SOURCE_DIR}/=)

target_compile_options(phalanx_options INTERFACE "$<$<COMPILE_LANGUAGE:C,CXX>:${_warnings};${_code}>")

if(PHALANX_CUDA)
  target_compile_options(phalanx_options INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;--expt-relaxed-constexpr;--extended-lambda;-Werror=all-warnings>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wno-restrict,-ffp-contract=off>")
  target_compile_definitions(phalanx_options INTERFACE PHALANX_HAVE_CUDA=1)
  target_include_directories(phalanx_options SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
endif()

if(NOT CMAKE_BUILD_TYPE STREQUAL "Release")
  target_compile_definitions(phalanx_options INTERFACE _GLIBCXX_ASSERTIONS)
endif()

# Sanitizers hold for all code in the build, not for ours alone.
if(PHALANX_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(PHALANX_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
elseif(PHALANX_SANITIZE)
  message(FATAL_ERROR "PHALANX_SANITIZE is \"${PHALANX_SANITIZE}\"; it can be empty, address or thread.")
endif()
