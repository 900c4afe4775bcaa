# What only tests and benchmarks use.
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
