// One piece of simulated device memory. It ends at a page that nobody may touch (or as near as its alignment allows,
// with a pattern between), and can be closed so that the host crashes on touching it, as on a device's pointer.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace [[gnu::visibility("hidden")]] simt {

class Region {
 public:
  // Closed, `bytes` > 0 long, at an address that leaves `remainder` when divided by `alignment`.
  Region(size_t bytes, size_t alignment, size_t remainder);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void open();            // throws where memory is short
  void close() noexcept;  // what was open becomes one mapping again, which takes no memory
  void guard();           // once, when it is first open
  bool intact() const;    // nothing was written beside it

 private:
  struct Mapping;
  size_t bytes_;
  std::unique_ptr<Mapping> mapping_;
  char *data_, *first_, *end_;  // from first_ to end_ it can be touched while it is open
};

// An address that nobody may touch.
char* nowhere();

}  // namespace simt
