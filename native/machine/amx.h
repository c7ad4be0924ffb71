// Sets up Intel's AMX tiles in the calling thread: eight tiles of 16 rows of 64 bytes.
#pragma once

namespace mixtura::amx {

constexpr int kTileRows = 16;

// A thread calls configure() before its tile products and release() after them.
void configure();
void release();

}  // namespace mixtura::amx
