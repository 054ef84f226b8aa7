// Runs a kernel over rows cut into tiles. Included by targets.h once per target.
//
// A Pass is made of: Row, the constants of one row, which Row::of fills for several rows at once, so
// that their mathematics vectorises too; Carry, what travels between tiles; kCarried, whether
// anything does; aggregate(p, row, tile), the carry that leaves a tile entered with none;
// link(p, row, carries), which turns a row's aggregates into the carries that enter its tiles;
// tile(p, row, tile, carry), which computes a tile and returns its sums; finish(p, row, sums), which
// writes what is one number a row; kTogether, up to which length rows are computed together, one a
// lane, by together(p, first, count). (Alone, a short row costs more than its elements do.)
//
// Tiles, and the order in which their sums are added, do not depend on the number of threads: nor
// do the results, to the bit.

namespace rhovae {
namespace RHOVAE_TARGET {

// What a Pass inherits whose rows have no constants and whose tiles nothing travels between.
struct Elementwise {
  struct Row {
    int64_t index;

    template <typename Arguments>
    static void of(const Arguments&, int64_t first, int count, Row* rows) {
      for (int i = 0; i < count; ++i) rows[i].index = first + i;
    }
  };
  struct Carry {};
  static constexpr bool kCarried = false;
  static constexpr int64_t kTogether = 0;

  template <typename Arguments>
  static Carry aggregate(const Arguments&, const Row&, int64_t) {
    return {};
  }
  template <typename Arguments>
  static void link(const Arguments&, const Row&, Carry*) {}
};

// A row of an output, null where the output is.
template <typename S>
S* row_of(void* out, int64_t row, int64_t length) {
  return out ? static_cast<S*>(out) + row * length : nullptr;
}

template <typename Pass, typename Arguments>
void run(const Arguments& p) {
  using Row = typename Pass::Row;
  using Carry = typename Pass::Carry;
  const Tiles& tiles = p.tiles;
  const int64_t per_row = tiles.per_row();
  const bool carried = Pass::kCarried && per_row > 1;
  std::vector<Carry> carries(carried ? tiles.count() : 0);

  const auto row_at = [&p](int64_t i) {
    Row row;
    Row::of(p, i, 1, &row);
    return row;
  };
  const auto tile = [&](const Row& row, int64_t t) {
    return Pass::tile(p, row, t, carried ? carries[row.index * per_row + t] : Carry{});
  };

  if constexpr (Pass::kTogether > 0) {
    if (tiles.length <= Pass::kTogether) {
      constexpr int lanes = kLanes<typename Pass::T>;
      parallel_rows(tiles, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i += lanes) {
          Pass::together(p, i, int(std::min<int64_t>(lanes, end - i)));
        }
      });
      return;
    }
  }

  if (!tiles.split()) {
    parallel_rows(tiles, [&](int64_t begin, int64_t end) {
      constexpr int batch = 16;
      Row rows[batch];
      for (int64_t i = begin; i < end; ++i) {
        const int at = int(i - begin) % batch;
        if (at == 0) Row::of(p, i, int(std::min<int64_t>(batch, end - i)), rows);
        const Row& row = rows[at];
        if (carried) {
          Carry* of_row = carries.data() + i * per_row;
          for (int64_t t = 0; t < per_row; ++t) of_row[t] = Pass::aggregate(p, row, t);
          Pass::link(p, row, of_row);
        }
        Sums sums;
        for (int64_t t = 0; t < per_row; ++t) sums += tile(row, t);
        Pass::finish(p, row, sums);
      }
    });
    return;
  }

  if (carried) {
    parallel_tiles(tiles, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        carries[i] = Pass::aggregate(p, row_at(i / per_row), i % per_row);
      }
    });
    for (int64_t i = 0; i < tiles.rows; ++i) Pass::link(p, row_at(i), carries.data() + i * per_row);
  }
  std::vector<Sums> sums(tiles.count());
  parallel_tiles(tiles, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums[i] = tile(row_at(i / per_row), i % per_row);
  });
  for (int64_t i = 0; i < tiles.rows; ++i) {
    Sums total;
    for (int64_t t = 0; t < per_row; ++t) total += sums[i * per_row + t];
    Pass::finish(p, row_at(i), total);
  }
}

}  // namespace RHOVAE_TARGET
}  // namespace rhovae
