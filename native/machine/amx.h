// The state of Intel's matrix tiles (AMX) in one thread: eight tiles of 16 rows of 64 bytes.
#pragma once

namespace mixtura::amx {

constexpr int kTileRows = 16;

// Around the products of one thread.
void configure();
void release();

}  // namespace mixtura::amx
