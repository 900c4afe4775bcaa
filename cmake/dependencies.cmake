# phalanx_ext_<name>: one target for each outside library. phalanx/CMakeLists.txt says which folder uses
# which. Header-only ones (toml++, nlohmann/json, CLI11) lie in the default include path: no target.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

# phalanx_ext(NAME [LINK target…]): an alias with our name for libraries that bring their own CMake targets.
function(phalanx_ext name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LINK")
  add_library(phalanx_ext_${name} INTERFACE)
  target_link_libraries(phalanx_ext_${name} INTERFACE ${arg_LINK})
endfunction()

function(phalanx_ext_pkg name module)
  pkg_check_modules(${name} REQUIRED QUIET IMPORTED_TARGET ${module})
  phalanx_ext(${name} LINK PkgConfig::${name})
endfunction()

# phalanx_ext_file(NAME HEADER file LIBRARY names [HINTS include_dir library_dir])
function(phalanx_ext_file name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "HEADER;LIBRARY" "HINTS")
  find_path(PHALANX_${name}_INCLUDE ${arg_HEADER} HINTS ${arg_HINTS} REQUIRED)
  find_library(PHALANX_${name}_LIBRARY ${arg_LIBRARY} HINTS ${arg_HINTS} REQUIRED)
  phalanx_ext(${name} LINK ${PHALANX_${name}_LIBRARY})
  if(NOT PHALANX_${name}_INCLUDE STREQUAL "/usr/include")
    target_include_directories(phalanx_ext_${name} SYSTEM INTERFACE ${PHALANX_${name}_INCLUDE})
  endif()
endfunction()

find_package(fmt CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(hwy CONFIG REQUIRED)
phalanx_ext(fmt LINK fmt::fmt)
phalanx_ext(spdlog LINK spdlog::spdlog)
phalanx_ext(hwy LINK hwy::hwy)
phalanx_ext(threads LINK Threads::Threads rt)
phalanx_ext_pkg(xxhash libxxhash)
phalanx_ext_pkg(pcre2 libpcre2-8)
phalanx_ext_pkg(utf8proc libutf8proc)
phalanx_ext_pkg(hwloc hwloc)

# OpenBLAS by its own path, whatever the alternatives system points libopenblas.so at: the OpenMP build starts
# no threads of its own, and threads of ours may call it at once (the serial build then gives wrong results).
phalanx_ext_file(openblas HEADER cblas.h LIBRARY openblas
  HINTS /usr/include/${CMAKE_LIBRARY_ARCHITECTURE}/openblas-openmp
        /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/openblas-openmp)
# Not find_package(dnnl): its configuration demands OpenCL headers, which nothing here uses.
phalanx_ext_file(dnnl HEADER oneapi/dnnl/dnnl.hpp LIBRARY dnnl)
target_link_libraries(phalanx_ext_dnnl INTERFACE gomp)  # whose number of threads ops/gemm.cc sets to one

find_package(MPI QUIET COMPONENTS C)
if(MPI_C_FOUND)
  phalanx_ext(mpi LINK MPI::MPI_C)
  target_compile_definitions(phalanx_ext_mpi INTERFACE OMPI_SKIP_MPICXX=1)  # the C interface only
endif()

if(PHALANX_TESTS)
  find_package(GTest CONFIG REQUIRED)
  phalanx_ext(gtest LINK GTest::gmock GTest::gtest GTest::gtest_main)
  # GoogleTest's own macros hold a parameter "info", the name its manual gives to ours.
  target_compile_options(phalanx_ext_gtest INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-shadow>)
endif()
if(PHALANX_BENCH)
  find_package(benchmark CONFIG REQUIRED)
  phalanx_ext(benchmark LINK benchmark::benchmark)
endif()
if(PHALANX_CUDA)
  phalanx_ext(cudart LINK CUDA::cudart_static)
  phalanx_ext(cublas LINK CUDA::cublas CUDA::cublasLt)
  set(_cuda ${CUDAToolkit_INCLUDE_DIRS} ${CUDAToolkit_LIBRARY_DIR})
  phalanx_ext_file(nccl HEADER nccl.h LIBRARY nccl HINTS ${_cuda})
  phalanx_ext_file(cudnn HEADER cudnn.h LIBRARY cudnn HINTS ${_cuda})
endif()
