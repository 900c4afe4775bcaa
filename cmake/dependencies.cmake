# phalanx_ext_<name>: one target for each outside library. phalanx/CMakeLists.txt says which folder uses
# which. Header-only ones (toml++, nlohmann/json, CLI11) lie in the default include path: no target.
#
# Also installed, for find_package(phalanx): there PHALANX_INSTALLED is set, and the targets are called
# phalanx::ext_<name>.

# phalanx_find(PACKAGE …): as find_package, and what is missing is an error.
macro(phalanx_find)
  if(PHALANX_INSTALLED)
    find_dependency(${ARGN})
  else()
    find_package(${ARGN} REQUIRED)
  endif()
endmacro()

# phalanx_ext(NAME [LINK target…]): our name for libraries that bring their own CMake targets.
function(phalanx_ext name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LINK")
  if(PHALANX_INSTALLED)
    set(target phalanx::ext_${name})
    add_library(${target} INTERFACE IMPORTED)
  else()
    set(target phalanx_ext_${name})
    add_library(${target} INTERFACE)
  endif()
  target_link_libraries(${target} INTERFACE ${arg_LINK})
  set(phalanx_ext_target ${target} PARENT_SCOPE)
endfunction()

function(phalanx_ext_pkg name module)
  pkg_check_modules(phalanx_${name} REQUIRED QUIET IMPORTED_TARGET ${module})
  phalanx_ext(${name} LINK PkgConfig::phalanx_${name})
endfunction()

# phalanx_ext_file(NAME HEADER file LIBRARY names [HINTS include_dir library_dir] [LINK target…])
function(phalanx_ext_file name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "HEADER;LIBRARY" "HINTS;LINK")
  find_path(PHALANX_${name}_INCLUDE ${arg_HEADER} HINTS ${arg_HINTS} REQUIRED)
  find_library(PHALANX_${name}_LIBRARY ${arg_LIBRARY} HINTS ${arg_HINTS} REQUIRED)
  phalanx_ext(${name} LINK ${PHALANX_${name}_LIBRARY} ${arg_LINK})
  if(NOT PHALANX_${name}_INCLUDE STREQUAL "/usr/include")
    target_include_directories(${phalanx_ext_target} SYSTEM INTERFACE ${PHALANX_${name}_INCLUDE})
  endif()
endfunction()

phalanx_find(PkgConfig)
phalanx_find(Threads)
phalanx_find(fmt CONFIG)
phalanx_find(spdlog CONFIG)
phalanx_find(hwy CONFIG)
phalanx_ext(fmt LINK fmt::fmt)
phalanx_ext(spdlog LINK spdlog::spdlog)
phalanx_ext(hwy LINK hwy::hwy)
phalanx_ext(threads LINK Threads::Threads rt)
phalanx_ext_pkg(xxhash libxxhash)
phalanx_ext_pkg(hwloc hwloc)
if(NOT PHALANX_PYTHON)  # which ends below the folders that need these
  phalanx_ext_pkg(pcre2 libpcre2-8)
  phalanx_ext_pkg(utf8proc libutf8proc)
endif()

# OpenBLAS by its own path, whatever the alternatives system points libopenblas.so at: the OpenMP build starts
# no threads of its own, and threads of ours may call it at once (the serial build then gives wrong results).
phalanx_ext_file(openblas HEADER cblas.h LIBRARY openblas
  HINTS /usr/include/${CMAKE_LIBRARY_ARCHITECTURE}/openblas-openmp
        /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/openblas-openmp)
# Not find_package(dnnl): its configuration demands OpenCL headers, which nothing here uses.
# Of gomp, ops/gemm.cc sets the number of threads to one.
phalanx_ext_file(dnnl HEADER oneapi/dnnl/dnnl.hpp LIBRARY dnnl LINK gomp)

# Whoever finds an installed Phalanx may have enabled C++ alone.
get_property(_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
set(_mpi CXX)
if("C" IN_LIST _languages)
  set(_mpi C)
endif()
if(PHALANX_INSTALLED AND PHALANX_MPI)
  phalanx_find(MPI COMPONENTS ${_mpi})
elseif(NOT PHALANX_INSTALLED)
  find_package(MPI QUIET COMPONENTS ${_mpi})
endif()
if(TARGET MPI::MPI_${_mpi} AND (PHALANX_MPI OR NOT PHALANX_INSTALLED))
  phalanx_ext(mpi LINK MPI::MPI_${_mpi})
  target_compile_definitions(${phalanx_ext_target} INTERFACE OMPI_SKIP_MPICXX=1)  # the C interface only
endif()

if(PHALANX_CUDA)
  phalanx_find(CUDAToolkit)
  phalanx_ext(cudart LINK CUDA::cudart_static)
  phalanx_ext(cublas LINK CUDA::cublas CUDA::cublasLt)
  set(_cuda ${CUDAToolkit_INCLUDE_DIRS} ${CUDAToolkit_LIBRARY_DIR})
  phalanx_ext_file(nccl HEADER nccl.h LIBRARY nccl HINTS ${_cuda})
  phalanx_ext_file(cudnn HEADER cudnn.h LIBRARY cudnn HINTS ${_cuda})
  if(NOT PHALANX_INSTALLED)  # headers that nothing of ours passes on
    include(pypi_headers)
    phalanx_pypi_headers(cudnn_frontend HEADER cudnn_frontend.h PACKAGE nvidia-cudnn-frontend VERSION 1.32.0
                         INCLUDE include)
    phalanx_pypi_headers(cutlass HEADER cutlass/cutlass.h PACKAGE nvidia-cutlass VERSION 4.2.0.0
                         INCLUDE cutlass_library/source/include)
  endif()
  set(_cudnn_frontend_needs CUDA::nvrtc)  # by engines that we do not ask for
  foreach(_headers cudnn_frontend cutlass)
    phalanx_ext(${_headers} LINK ${_${_headers}_needs})
    target_include_directories(${phalanx_ext_target} SYSTEM INTERFACE ${PHALANX_${_headers}_INCLUDE})
  endforeach()
endif()
