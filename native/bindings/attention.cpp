// The Python bindings of attention, for the module in native.cpp.
#include "bindings/attention.h"

#include <mutex>
#include <stdexcept>
#include <string>

#include "bindings/address.h"

namespace nb = nanobind;

namespace mixtura {
namespace {

// The plan of the current call; the lock admits one call at a time. Later calls reuse its memory.
std::mutex planning;
AttentionPlan plan;

GivenCache given(uintptr_t keys, uintptr_t values, uintptr_t key_scales, uintptr_t value_scales,
                 int kept, int64_t slots, int kv_heads, int64_t capacity, int key_dim,
                 int value_dim) {
  return {{at<uint8_t>(keys), at<uint8_t>(values), at<float>(key_scales), at<float>(value_scales),
           static_cast<Kept>(kept), kv_heads, capacity, key_dim, value_dim},
          slots};
}

void run_append(const GivenCache& into, uintptr_t k, uintptr_t v, int64_t rows, uintptr_t slot,
                uintptr_t position, int set) {
  const TokenRows tokens = into.rows(rows, slot, position);
  Pool::shared().run([&](Team& team) {
    append(team, into.cache, tokens, at<const float>(k), at<const float>(v),
           static_cast<InstructionSet>(set));
  });
}

void run_attend(const GivenCache& from, uintptr_t q, int64_t rows, int heads, uintptr_t slot,
                uintptr_t position, float scale, int64_t window, uintptr_t sinks, int phase,
                int set, uintptr_t out) {
  const TokenRows tokens = from.rows(rows, slot, position);
  const Queries queries{at<const float>(q), int64_t{heads} * from.cache.key_dim, heads, scale,
                        window, at<const float>(sinks), at<float>(out)};
  const auto isa = static_cast<InstructionSet>(set);
  std::lock_guard<std::mutex> lock(planning);
  plan.make(tokens, queries, from.cache.kv_heads, static_cast<Phase>(phase));
  const Scratch scratch = attention_scratch(plan, from.cache, heads, isa);
  Pool::shared().run(scratch, [&](Team& team, uint8_t* shared, uint8_t* own) {
    attend(team, plan, from.cache, tokens, queries, isa, shared, own);
  });
}

}  // namespace

void check_index(const char* name, int64_t value, int64_t bound) {
  if (value >= 0 && value < bound) return;
  throw std::out_of_range(std::string(name) + " " + std::to_string(value) + " must lie in 0.." +
                          std::to_string(bound - 1));
}

TokenRows GivenCache::rows(int64_t count, uintptr_t slot, uintptr_t position) const {
  const TokenRows rows{static_cast<int>(count), at<const int64_t>(slot),
                       at<const int64_t>(position)};
  for (int row = 0; row < rows.count; ++row) {
    check_index("slot", rows.slot[row], slots);
    check_index("position", rows.position[row], cache.capacity);
  }
  return rows;
}

void bind_attention(nb::module_& module) {
  using released = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<GivenCache>(module, "LayerCache");
  module.def("layer_cache", &given);
  module.def("append", &run_append, released());
  module.def("attend", &run_attend, released());
}

}  // namespace mixtura
