# Speed of the build only: nothing here changes what is built.

find_program(PHALANX_CCACHE ccache)
if(PHALANX_CCACHE)
  # base_dir and no hash_dir: a fresh clone at another path still finds what an earlier one compiled.
  set(_ccache ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
      ${PHALANX_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${_ccache})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${_ccache})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${_ccache})
endif()

find_program(PHALANX_MOLD mold)
find_program(PHALANX_LLD ld.lld)
if(PHALANX_MOLD)
  add_link_options(-fuse-ld=mold)
elseif(PHALANX_LLD)
  add_link_options(-fuse-ld=lld)
endif()
# A library that nothing uses is not loaded at start.
add_link_options(-Wl,--as-needed)
