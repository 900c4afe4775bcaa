# What a folder becomes. Sources are found by their names, so that adding a file needs no edit here:
#   *.cc                     always, except
#   mpi*.cc                  when MPI was found (PHALANX_HAVE_MPI)
#   *.cu, nccl*, *_cuda.cc, *_cudnn.cc   when PHALANX_CUDA is on (PHALANX_HAVE_CUDA)

# Sets OUT to those of the given files which this configuration compiles.
function(phalanx_choose_sources out)
  set(files ${ARGN})
  if(NOT TARGET phalanx_ext_mpi)
    list(FILTER files EXCLUDE REGEX "/mpi[^/]*\\.cc$")
  endif()
  if(NOT PHALANX_CUDA)
    list(FILTER files EXCLUDE REGEX "(\\.cu|/nccl[^/]*\\.cc|_cu(da|dnn)\\.cc)$")
  endif()
  set(${out} ${files} PARENT_SCOPE)
endfunction()

# phalanx_library(NAME [NEEDS folder…] [EXTERNAL name…] [CUDA_EXTERNAL name…])
# The static library phalanx_NAME of folder phalanx/NAME, installed as phalanx::NAME (install.cmake). A
# folder without sources (yet) becomes an empty interface library, so that the arrows through it still hold.
# NEEDS are seen by whoever links this library; EXTERNAL libraries are not. Names in EXTERNAL that were not
# found and are optional are skipped.
function(phalanx_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "NEEDS;EXTERNAL;CUDA_EXTERNAL")
  file(GLOB_RECURSE found CONFIGURE_DEPENDS
       "${PROJECT_SOURCE_DIR}/phalanx/${name}/*.cc" "${PROJECT_SOURCE_DIR}/phalanx/${name}/*.cu")
  phalanx_choose_sources(sources ${found})
  list(TRANSFORM arg_NEEDS PREPEND phalanx_)
  set_property(GLOBAL APPEND PROPERTY PHALANX_LIBRARIES phalanx_${name})
  if(NOT sources)
    add_library(phalanx_${name} INTERFACE)
    target_link_libraries(phalanx_${name} INTERFACE ${arg_NEEDS})
    return()
  endif()
  add_library(phalanx_${name} STATIC ${sources})
  target_link_libraries(phalanx_${name} PUBLIC ${arg_NEEDS} PRIVATE $<BUILD_INTERFACE:phalanx_options>)
  if(PHALANX_CUDA)
    list(APPEND arg_EXTERNAL cudart ${arg_CUDA_EXTERNAL})
  endif()
  foreach(external IN LISTS arg_EXTERNAL)
    if(TARGET phalanx_ext_${external})
      target_link_libraries(phalanx_${name} PRIVATE "$<BUILD_INTERFACE:phalanx_ext_${external}>"
                                                    "$<INSTALL_INTERFACE:phalanx::ext_${external}>")
    endif()
  endforeach()
endfunction()

# Links TARGET with every library there is.
function(phalanx_link_all target)
  get_property(libraries GLOBAL PROPERTY PHALANX_LIBRARIES)
  target_link_libraries(${target} PRIVATE phalanx_options ${libraries})
endfunction()

# Builds one GoogleTest program and registers each of its tests.
# phalanx_test_program(NAME LABELS label… TIMEOUT seconds SOURCES file… LIBRARIES target…)
function(phalanx_test_program name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT" "LABELS;SOURCES;LIBRARIES")
  if(PHALANX_SANITIZE)  # which makes code some ten times slower
    math(EXPR arg_TIMEOUT "4 * ${arg_TIMEOUT}")
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE "${PROJECT_BINARY_DIR}/generated")
  target_link_libraries(${name} PRIVATE phalanx_options phalanx_ext_gtest ${arg_LIBRARIES})
  list(GET arg_LABELS 0 folder)
  gtest_discover_tests(${name} TEST_PREFIX "${folder}/" NO_PRETTY_VALUES
                       DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60)
  # CMake 3.25 flattens lists that are given to gtest_discover_tests, so the properties are set after it.
  set(properties "${CMAKE_CURRENT_BINARY_DIR}/${name}_properties.cmake")
  file(WRITE "${properties}" "if(${name}_TESTS)
  set_tests_properties(\${${name}_TESTS} PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS \"${arg_LABELS}\"
                       ENVIRONMENT \"${PHALANX_TEST_ENVIRONMENT}\")
endif()\n")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${properties}")
endfunction()

# phalanx_test_folder(FOLDER): the tests of tests/FOLDER.
#   *_test.cc                    → test_FOLDER, label FOLDER
#   *_full_test.cc               → test_FOLDER_full, labels FOLDER and full (slow: not in `make test`)
#   *_test.cu, *_cuda_test.cc    → test_FOLDER_cuda, labels FOLDER and cuda, when PHALANX_CUDA is on
#   *_test.sh, *_test.py         → FOLDER/<file>; arguments: the phalanx command, the source directory
#   NAME_program.cc              → bin/test_FOLDER_NAME, which scripts of the folder start
# Other *.cc files of the folder are helpers, compiled into each of its programs.
function(phalanx_test_folder folder)
  set(dir "${PROJECT_SOURCE_DIR}/tests/${folder}")
  file(GLOB helpers CONFIGURE_DEPENDS "${dir}/*.cc")
  file(GLOB tests CONFIGURE_DEPENDS "${dir}/*_test.cc" "${dir}/*_test.cu")
  file(GLOB programs CONFIGURE_DEPENDS "${dir}/*_program.cc")
  if(tests OR programs)
    list(REMOVE_ITEM helpers ${tests} ${programs})
  endif()
  phalanx_test_libraries(libraries ${folder})

  set(full ${tests})
  list(FILTER full INCLUDE REGEX "_full_test\\.cc$")
  set(cuda ${tests})
  list(FILTER cuda INCLUDE REGEX "(_test\\.cu|_cuda_test\\.cc)$")
  if(full OR cuda)
    list(REMOVE_ITEM tests ${full} ${cuda})
  endif()
  phalanx_choose_sources(tests ${tests})
  if(tests)
    phalanx_test_program(test_${folder} LABELS ${folder} TIMEOUT 120
                         SOURCES ${tests} ${helpers} LIBRARIES ${libraries})
  endif()
  if(full)
    phalanx_test_program(test_${folder}_full LABELS ${folder} full TIMEOUT 1800
                         SOURCES ${full} ${helpers} LIBRARIES ${libraries})
  endif()
  if(cuda AND PHALANX_CUDA)
    phalanx_test_program(test_${folder}_cuda LABELS ${folder} cuda TIMEOUT 120
                         SOURCES ${cuda} ${helpers} LIBRARIES ${libraries})
    add_dependencies(phalanx_cuda test_${folder}_cuda)
  endif()

  phalanx_choose_sources(programs ${programs})
  foreach(source IN LISTS programs)
    string(REGEX REPLACE ".*/([^/]+)_program\\.cc$" "test_${folder}_\\1" program "${source}")
    add_executable(${program} ${source} ${helpers})
    target_link_libraries(${program} PRIVATE phalanx_options phalanx_ext_gtest ${libraries})
    foreach(user test_${folder} test_${folder}_cuda)
      if(TARGET ${user})
        add_dependencies(${user} ${program})
      endif()
    endforeach()
  endforeach()

  foreach(program test_${folder} test_${folder}_full test_${folder}_cuda)
    if(TARGET ${program} AND TARGET phalanx AND NOT TARGET phalanx_${folder})
      add_dependencies(${program} phalanx)  # tests of the whole run the command itself
    endif()
  endforeach()

  file(GLOB scripts CONFIGURE_DEPENDS "${dir}/*_test.sh" "${dir}/*_test.py")
  foreach(script IN LISTS scripts)
    get_filename_component(file ${script} NAME)
    set(interpreter bash)
    if(file MATCHES "\\.py$")
      set(interpreter python3 -B)
    endif()
    add_test(NAME ${folder}/${file}
             COMMAND ${interpreter} ${script} ${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/phalanx ${PROJECT_SOURCE_DIR})
    set_tests_properties(${folder}/${file} PROPERTIES TIMEOUT 600 LABELS ${folder}
                         ENVIRONMENT "${PHALANX_TEST_ENVIRONMENT}")
    if(file MATCHES "_full_test\\.")
      set_tests_properties(${folder}/${file} PROPERTIES TIMEOUT 1800 LABELS "${folder};full"
                           RUN_SERIAL TRUE)  # they wait for deadlines
    endif()
  endforeach()
endfunction()

# The libraries which tests/FOLDER links: those of phalanx/FOLDER and below it, plus PHALANX_TEST_ALSO_FOLDER;
# all of them for a folder that has no library of its name (end_to_end, golden).
function(phalanx_test_libraries out folder)
  get_property(all GLOBAL PROPERTY PHALANX_LIBRARIES)
  if("phalanx_${folder}" IN_LIST all)
    list(TRANSFORM PHALANX_TEST_ALSO_${folder} PREPEND phalanx_ OUTPUT_VARIABLE also)
    set(${out} phalanx_${folder} ${also} PARENT_SCOPE)
  else()
    set(${out} ${all} PARENT_SCOPE)
  endif()
endfunction()
