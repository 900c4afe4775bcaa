# `cmake --install`: the command, every public header, the libraries, and find_package(phalanx) with one
# target phalanx::FOLDER for each folder of phalanx/.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(_config ${CMAKE_INSTALL_LIBDIR}/cmake/phalanx)

get_property(_libraries GLOBAL PROPERTY PHALANX_LIBRARIES)
foreach(library IN LISTS _libraries)
  string(REGEX REPLACE "^phalanx_" "" folder ${library})
  set_target_properties(${library} PROPERTIES EXPORT_NAME ${folder})
  target_compile_features(${library} INTERFACE cxx_std_20)
  target_include_directories(${library} INTERFACE "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
  if(PHALANX_CUDA)  # headers ask it
    target_compile_definitions(${library} INTERFACE "$<INSTALL_INTERFACE:PHALANX_HAVE_CUDA=1>")
  endif()
endforeach()
install(TARGETS ${_libraries} EXPORT phalanx ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET phalanx)
  install(TARGETS phalanx RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY phalanx DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(FILES LICENSE README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(PHALANX_MPI OFF)
if(TARGET phalanx_ext_mpi)
  set(PHALANX_MPI ON)
endif()
configure_package_config_file(cmake/phalanxConfig.cmake.in ${PROJECT_BINARY_DIR}/generated/phalanxConfig.cmake
                              INSTALL_DESTINATION ${_config} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/generated/phalanxConfigVersion.cmake
                                 VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/generated/phalanxConfig.cmake
              ${PROJECT_BINARY_DIR}/generated/phalanxConfigVersion.cmake
              cmake/dependencies.cmake
        DESTINATION ${_config})
install(EXPORT phalanx NAMESPACE phalanx:: FILE phalanxTargets.cmake DESTINATION ${_config})
