# PHALANX_CUDA=ON turns on *.cu files, the sources that need the CUDA libraries, and PHALANX_HAVE_CUDA.
if(NOT PHALANX_CUDA)
  return()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a)
endif()
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(PHALANX_NVCC nvcc HINTS /usr/local/cuda/bin)
  if(NOT PHALANX_NVCC)
    message(FATAL_ERROR "PHALANX_CUDA is ON but nvcc was not found: install the CUDA toolkit, "
            "or use another preset.")
  endif()
  set(CMAKE_CUDA_COMPILER ${PHALANX_NVCC})
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
# CMake 3.25 knows C++ standards of nvcc up to 17 only; this is its own way of saying 20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
# The command, and of tests and benchmarks what other presets do not build.
add_custom_target(phalanx_cuda)
