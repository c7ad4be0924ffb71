// Latent attention in a step, in its absorbed form: see mixers.h. A query of a head is multiplied
// by the head's key rows of kv_up, and then attends to latents; what it finds there is multiplied
// by the head's value rows.
#include <algorithm>

#include "decoder/step.h"

namespace mixtura {

void Step::mix(Team& team, const LatentAttention& block) {
  project(team, block);
  keep_rows(team, block);
  absorb_queries(team, block);
  attend_rows(team, block.over);
  find_values(team, block);
  team.barrier();
  multiply(team, block.over.out, projected_, block.projected_width(), branch_, width());
}

void Step::project(Team& team, const LatentAttention& block) {
  const int64_t stride = block.projected_width();
  float* queries = projected_ + block.query_start();
  float* latents = projected_ + block.squeezed_width();
  multiply(team, block.kv_down, normed_, width(), latents, stride);
  team.barrier();
  if (block.squeezes) {
    multiply(team, block.query_down, normed_, width(), projected_, stride);
    team.barrier();
    each(team, rows_, [&](int64_t i) {
      float* squeezed = projected_ + i * stride;
      block.query_norm.apply(squeezed, block.squeezed_width(), squeezed);
    });
    multiply(team, block.query, projected_, stride, queries, stride);
  } else {
    multiply(team, block.query, normed_, width(), queries, stride);
  }
  team.barrier();
}

void Step::keep_rows(const Team& team, const LatentAttention& block) {
  const CachedHeads& over = block.over;
  each(team, rows_, [&](int64_t i) {
    const float* latent = projected_ + i * block.projected_width() + block.squeezed_width();
    const int64_t angle = given_.angle[i];
    block.kv_norm.apply(latent, block.rank(), own_);
    float* key = own_ + block.rank();
    std::copy_n(latent + block.rank(), over.rope_dim, key);
    rotate(key, over.cosines_at(angle), over.sines_at(angle), over.rope_dim / 2);
    const int64_t place = over.cache.place(given_.rows.slot[i], 0, given_.rows.position[i]);
    keep_vector(kernels_, over.cache, true, place, own_);
  });
}

// Writes the queries of the rows that go on to q_: of each head [query of latents, rotated query].
void Step::absorb_queries(const Team& team, const LatentAttention& block) {
  const CachedHeads& over = block.over;
  const int64_t rows = going_on();
  for (int head = team.thread; head < over.heads; head += team.threads) {
    if (reads_prompts(given_.phase)) absorb_in_blocks(block, head, rows);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t from = source(i), angle = given_.angle[from];
      const float* query = projected_ + from * block.projected_width() + block.query_start() +
                           int64_t{head} * block.query_dim();
      float* out = q_ + i * over.query_width() + int64_t{head} * over.key_dim();
      if (!reads_prompts(given_.phase)) {
        std::fill_n(own_, padded(block.rank()), 0.0f);
        for (int first = 0; first < block.nope_dim; first += kPositions) {
          const int count = std::min(block.nope_dim - first, kPositions);
          const Vectors rows_of_keys = block.up_at(head, first);
          const void* ahead = block.up_at(head, first + count).at;
          kernels_.mix(rows_of_keys, count, query + first, 1, own_, padded(block.rank()),
                       static_cast<const uint8_t*>(ahead));
        }
        std::copy_n(own_, block.rank(), out);
      }
      float* key = out + block.rank();
      std::copy_n(query + block.nope_dim, over.rope_dim, key);
      rotate(key, over.cosines_at(angle), over.sines_at(angle), over.rope_dim / 2);
    }
  }
}

// The queries of latents of one head, in prefill: the head's keys are widened once for all rows.
void Step::absorb_in_blocks(const LatentAttention& block, int head, int64_t rows) {
  const CachedHeads& over = block.over;
  const int columns = padded(block.rank());
  float* panel = own_ + block.vector_floats();
  float* sums = panel + block.panel_floats();
  for (int first = 0; first < block.nope_dim; first += kPositions) {
    const int count = std::min(block.nope_dim - first, kPositions);
    kernels_.pack_values(block.up_at(head, first), count, nullptr,
                         panel + int64_t{first} * columns);
  }
  const int64_t stride = block.projected_width();
  const int64_t start = block.query_start() + int64_t{head} * block.query_dim();
  // Rows that go on alone do not lie one after another.
  const int64_t most = some_ ? 1 : LatentAttention::kRows;
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(rows - first, most);
    kernels_.product(projected_ + source(first) * stride + start, stride, static_cast<int>(count),
                     block.nope_dim, panel, columns, nullptr, sums);
    for (int64_t i = 0; i < count; ++i) {
      float* out = q_ + (first + i) * over.query_width() + int64_t{head} * over.key_dim();
      std::copy_n(sums + i * columns, block.rank(), out);
    }
  }
}

// The values of all heads from the latents that attention found, into projected_.
void Step::find_values(const Team& team, const LatentAttention& block) {
  const CachedHeads& over = block.over;
  for (int head = team.thread; head < over.heads; head += team.threads) {
    if (reads_prompts(given_.phase)) {
      find_values_in_blocks(block, head);
      continue;
    }
    for (int64_t i = 0; i < rows_; ++i) {
      const float* found = attended_ + i * over.mixed_width() + int64_t{head} * block.rank();
      float* out = projected_ + i * block.projected_width() + int64_t{head} * block.value_dim;
      std::fill_n(own_, padded(block.rank()), 0.0f);
      std::copy_n(found, block.rank(), own_);
      for (int first = 0; first < block.value_dim; first += kPositions) {
        const int count = std::min(block.value_dim - first, kPositions);
        const void* ahead = block.up_at(head, block.nope_dim + first + count).at;
        kernels_.scores(block.up_at(head, block.nope_dim + first), count, own_,
                        padded(block.rank()), 1, out + first, static_cast<const uint8_t*>(ahead));
      }
    }
  }
}

void Step::find_values_in_blocks(const LatentAttention& block, int head) {
  const CachedHeads& over = block.over;
  float* panel = own_ + block.vector_floats();
  float* sums = panel + block.panel_floats();
  for (int value = 0; value < block.value_dim; value += kPositions) {
    const int columns = std::min(block.value_dim - value, kPositions);
    kernels_.pack_keys(block.up_at(head, block.nope_dim + value), columns, nullptr, panel);
    for (int64_t first = 0; first < rows_; first += LatentAttention::kRows) {
      const int64_t count = std::min<int64_t>(rows_ - first, LatentAttention::kRows);
      const float* found = attended_ + first * over.mixed_width() + int64_t{head} * block.rank();
      kernels_.product(found, over.mixed_width(), static_cast<int>(count), block.rank(), panel,
                       kPositions, nullptr, sums);
      for (int64_t i = 0; i < count; ++i) {
        float* out = projected_ + (first + i) * block.projected_width() +
                     int64_t{head} * block.value_dim + value;
        std::copy_n(sums + i * kPositions, columns, out);
      }
    }
  }
}

}  // namespace mixtura
