# phalanx_pypi_headers(NAME HEADER file PACKAGE name VERSION version INCLUDE path): sets
# PHALANX_NAME_INCLUDE to the folder of HEADER, of a library of headers that Debian has not: this machine's if
# there is one, else that of the wheel (its folder INCLUDE), which pip fetches once into the build directory.
function(phalanx_pypi_headers name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "HEADER;PACKAGE;VERSION;INCLUDE" "")
  find_path(PHALANX_${name}_INCLUDE ${arg_HEADER})
  if(PHALANX_${name}_INCLUDE)
    return()
  endif()
  set(there ${PROJECT_BINARY_DIR}/pypi/${arg_PACKAGE}-${arg_VERSION})
  if(NOT EXISTS ${there}/${arg_INCLUDE}/${arg_HEADER})
    message(STATUS "Fetching the headers of ${arg_PACKAGE} ${arg_VERSION} from PyPI")
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -m pip --disable-pip-version-check -q download --no-deps
              --only-binary=:all: -d ${there}.wheel ${arg_PACKAGE}==${arg_VERSION}
      RESULT_VARIABLE status ERROR_VARIABLE error)
    file(GLOB wheel ${there}.wheel/*.whl)
    if(NOT status EQUAL 0 OR NOT wheel)
      message(FATAL_ERROR "pip could not fetch ${arg_PACKAGE} ${arg_VERSION}; it said \"${error}\". "
              "Install its headers by other means and set PHALANX_${name}_INCLUDE to the folder of "
              "${arg_HEADER}.")
    endif()
    file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${there} PATTERNS "${arg_INCLUDE}/*")
    file(REMOVE_RECURSE ${there}.wheel)
  endif()
  set(PHALANX_${name}_INCLUDE ${there}/${arg_INCLUDE} CACHE PATH "Headers of ${arg_PACKAGE}" FORCE)
endfunction()
