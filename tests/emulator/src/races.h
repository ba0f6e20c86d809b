// The happens-before checker of shared memory (settings.races): two accesses to a byte, one of them a write, that
// nothing orders are a fault, whether or not this schedule made them collide.
//
// Order comes from the program, from barriers of every kind, from mbarriers (arrival to wait), from the completion of
// asynchronous work, and from bar.warp.sync; shuffles and votes order nothing. Asynchronous work has agents of its own:
//
//   cp.async of a warp      known to a lane once it has waited; to others through its arrivals from then on, or
//                           through cp.async.mbarrier.arrive.noinc
//   bulk stores of a warp   likewise
//   products of a warpgroup four shares: a warp that has waited knows its own; each begins after what the four warps
//                           knew at its issue
//   tensor work of a warp   products and copies of tcgen05, of each lane: known to who has waited for an mbarrier at
//                           which a later commit of the lane has arrived; each begins after what its issuer knew. (A
//                           commit says nothing of what its thread itself has read or written.)
//   transactions of an      TMA, bulk copies, st.async: known to who has waited for the mbarrier's phase; each begins
//   mbarrier                after what its issuer knew
//
// What products, copies to tensor memory and bulk stores read through the async proxy, and threads or cp.async wrote,
// also needs a proxy fence on the way (settings.proxy_fences): of a thread to which the write is complete, before the
// reader's issue. So does what TMA and bulk copies write, once threads or cp.async have written or read it. (st.async
// is of the generic proxy.)
//
// A CTA may not end before what others do in its memory, bulk copies from it to others, nor before commits have arrived
// there: somebody waits for them.
//
// Tensor memory is checked in the same way, by rules of its own: race_tmem.cpp.
//
// It belongs to schedules in which asynchronous work is done at its issue: whether it is late makes no difference to
// what is ordered. mbarriers' own words are not checked, except that they are initialised before they are used.
#pragma once

#include <string>
#include <unordered_map>

#include "clocks.h"
#include "machine.h"
#include "tmem.h"

namespace emu {

// Strong: volatile, relaxed and so on. Atomic operations and strong accesses (a strong write is kAtomic) do not race
// with each other; nor do they order anything here. kRewrite: of the value that is there, which does not race with the
// write that left it, whichever came first. kAsyncWrite: through the async proxy.
enum class Access : u8 { kRead, kStrongRead, kWrite, kRewrite, kAsyncWrite, kAtomic };

// Accesses whose sources have these texts in them may race: the first one came first.
void allow_race(std::string first, std::string second);

class Races {
 public:
  explicit Races(Cluster& cluster) : cluster_(cluster) {}
  void begin();                  // the cluster's CTAs start
  void end_cta(Cta const& cta);  // its last thread has exited

  // --- accesses of threads; of several lanes as one where they share what they read (ldmatrix)
  void access(Warp& w, u32 lanes, u32 address, u32 bytes, Access kind);

  // --- barriers: what `lanes` have done goes into a clock; what a clock holds becomes known to them
  void release(Warp& w, u32 lanes, Clock& into);
  void acquire(Warp& w, u32 lanes, Clock const& from);
  void synchronise_warp(Warp& w, u32 lanes);
  void fence_proxies(Warp& w, u32 lanes);
  Clock& named_barrier(Cta const& cta, u32 number) { return named_[cta.rank * kNamedBarriers + number]; }

  void arrive_at_cluster(Warp& w, u32 lanes) { release(w, lanes, cluster_barrier_.arrived); }
  void end_cluster_phase();
  void pass_cluster(Warp& w) { acquire(w, w.alive, cluster_barrier_.passed); }

  // --- mbarriers, of which each lane names one
  void use_mbarriers(Warp& w, u32 lanes, u64 const* mbarriers);  // by any operation but their initialisation
  // By an operation whose CTA must live until then: before what an arrival tells others. (Bytes of asynchronous stores
  // are waited for at the mbarrier itself.)
  void visit_mbarriers(Warp& w, u32 lanes, u64 const* mbarriers);
  void arrive(Warp& w, u32 lanes, u64 const* mbarriers);
  void pass(Warp& w, u32 lanes, u64 const* mbarriers);
  void arrive_when_copied(Warp& w, u32 lanes, u64 const* mbarriers);  // cp.async.mbarrier.arrive.noinc
  void end_phase(u32 mbarrier);

  // --- asynchronous work
  enum Kind : u8 { kThreads, kCopies, kBulkStores, kProducts, kTensor, kTransactions, kTmemLoads, kTmemStores };
  void begin_operations(Warp& w, Kind kind) { ++operations(w, kind).issued; }  // goes before an instruction's accesses
  void write_by_copy(Warp& w, int lane, u32 address, u32 bytes);
  void write_by_transaction(Warp& w, int lane, u32 address, u32 bytes, u32 mbarrier, Access kind);
  void commit(Warp& w, u32 lanes, Kind kind);
  void wait(Warp& w, u32 lanes, Kind kind, u32 newest_left);
  void wait_all(Warp& w, u32 lanes, Kind kind);

  void commit_tensor(Warp& w, int lane, u32 mbarrier);

  // From here to end_reader() async_read() is what a bulk copy, tensor work, or a product of wgmma reads. Such a
  // product's first warp is given, with what each of the four knew when it issued its share; read_for() says whose
  // share comes.
  void begin_bulk_store(Warp& w, int lane);
  void begin_transaction_read(Warp& w, int lane, u32 mbarrier);
  void begin_tensor(Warp& w, int lane, TensorPipeline pipeline);
  void begin_product(Warp& first, std::vector<Clock const*> const& known, u32 number, i32 pc);
  void read_for(Warp const* w) {  // null: for all
    only_ = w == nullptr ? nullptr : &state(*w);
    reader_.lanes = w == nullptr ? kAllLanes : share(*w);
  }
  void end_reader() { issuers_.clear(); }
  void async_read(u32 address, u32 bytes);
  Clock known_to_any_lane(Warp const& w);

  // --- tensor memory
  void allocate_tmem(Warp& w, TmemPart const& part);
  void free_tmem(Warp& w, TmemPart const& part);
  void load_tmem(Warp& w, TmemPart const& part);
  void store_tmem(Warp& w, TmemPart const& part);
  void wait_tmem(Warp& w, Kind kind);               // for the warp's kTmemLoads or kTmemStores
  void read_tmem_by_tensor(TmemPart const& part);   // between begin_tensor() and end_reader()
  void write_tmem_by_tensor(TmemPart const& part);  // likewise
  void fence_before_thread_sync(Warp& w, u32 lanes);
  void fence_after_thread_sync(Warp& w, u32 lanes);

 private:
  static constexpr u32 kNamedBarriers = 16, kWord = 4, kBlock = 256, kNoAgent = 0xffff;

  // Who accessed some bytes of a word, and when.
  struct Stamp {
    u32 time, lanes;
    i32 pc;
    u16 agent;
    u8 bytes;  // a bit for each; 0: nobody
    Access kind;
  };
  // The last write, and what has read, or been done atomically, since. Of more than four such the newest are kept.
  static constexpr u32 kReaders = 4;
  struct Word {
    Stamp write, first_reader;
    u32 readers;
  };
  struct MoreReaders {
    Stamp stamps[kReaders - 1];
  };

  // Asynchronous operations of a warp: numbers count them, and commit groups end at numbers.
  struct Operations {
    u16 agent = kNoAgent;
    u32 issued = 0;
    std::vector<u32> committed[kLanes];
    u32 done[kLanes] = {};  // those with smaller numbers are known to the lane
  };
  // Products and copies that a warp's lanes have issued. The agent that follows is known up to where such work is
  // ordered, though it may not be complete. `fenced`: what a lane's fence::before_thread_sync came after.
  struct TensorWork {
    u16 agent = kNoAgent;
    u32 issued = 0;
    u32 fenced[kLanes] = {};
    std::vector<std::pair<int, Clock>> before = {};  // of a lane, what it knew
  };
  struct TmemMoves {
    u16 agent = kNoAgent;
    u32 issued = 0, done = 0;  // those with smaller numbers have been waited for
    u32 fenced[kLanes] = {};
  };
  struct Knowledge {
    u32 lanes;
    Clock clock;
  };
  struct WarpState {
    u16 agent;
    u32 time = 0;
    std::vector<Knowledge> groups = {};  // lanes that know the same
    Operations copies = {}, bulk_stores = {}, products = {};
    TensorWork tensor = {};
    TmemMoves loads = {}, stores = {};
    // What each lane knew at its last tcgen05.fence::after_thread_sync, null before it.
    std::shared_ptr<Clock const> known_after_sync[kLanes] = {};
  };
  struct Mbarrier {
    Clock arrived, passed;  // in this phase; in the phases before
    u16 agent = kNoAgent;
    u32 phase = 0;
    u32 committed = 0, waited_for = 0;  // phases, from 1 on: the last one that a commit has arrived in; that was passed
  };
  // Whose knowledge an access begins with; the own accesses of lanes `own` come before it.
  struct Issuer {
    WarpState const* warp;
    Clock const* clock;
    u32 own;
  };
  // Of a quarter of the lanes of tensor memory, in a column: the last write, and who has read since.
  struct TmemStamp {
    u32 time, lanes;
    i32 pc;
    u16 agent;
    bool writes;
    TensorPipeline pipeline;
    bool operator==(TmemStamp const&) const = default;
  };
  struct TmemCell {
    TmemStamp write, readers[kReaders];
    u32 reader_count;
  };
  // Whose knowledge an access to tensor memory begins with: of these lanes, this (null: nothing).
  struct TmemIssuer {
    u32 lanes;
    Clock const* known;
  };
  struct Agent {
    Kind kind;
    u32 cta, number;  // of the warp, the warpgroup, or the mbarrier's address
  };

  void clear(u32 rank, size_t words);
  WarpState& state(Warp const& w) { return warps_[w.cta->rank * warps_per_cta_ + u32(w.id)]; }
  Operations& operations(Warp const& w, Kind kind);
  u16 new_agent(Kind kind, u32 cta, u32 number);
  Mbarrier& mbarrier_at(u32 address);
  Issuer issuer(Warp& w, int lane);
  // Of products: as many lanes of their agent as a warp has.
  static u32 share(Warp const& w) { return 0xffu << w.id % 4 * 8; }
  void learn_products(Warp& w);
  void use_mbarrier(Warp& w, int lane, u32 address);
  TmemMoves& tmem_moves(Warp const& w, Kind kind);
  void move_tmem(Warp& w, TmemPart const& part, Kind kind);
  void access_tmem(WarpState const& w, TmemPart const& part, TmemStamp const& stamp);
  void access_tmem_by_tensor(TmemPart const& part);
  bool tmem_ordered(WarpState const& w, TmemStamp const& before, TmemStamp const& now,
                    std::vector<TmemIssuer> const& issuers) const;
  [[noreturn]] void tmem_race(WarpState const& w, u32 quarter, u32 column, TmemStamp const& before,
                              TmemStamp const& now) const;
  std::string describe(TmemStamp const& stamp) const;
  static void add_done(u16 agent, u32 const (&done)[kLanes], u32 lanes, bool all, Clock& into);

  bool allowed(Stamp const& before, Stamp const& now) const;
  bool lacks_fence(Stamp const& before, Stamp const& now, Clock const& known) const;
  static bool ordered(Stamp const& before, Issuer const& now);
  void visit(u32 rank, Stamp const& stamp);
  std::string place_in_code(i32 pc) const;
  static bool conflict(Access a, Access b);
  void check(u32 address, Stamp const& before, Stamp const& now, std::vector<Issuer> const& issuers) const;
  void access(u32 address, u32 bytes, Stamp stamp, std::vector<Issuer> const& issuers);
  void add_reader(Word& word, MoreReaders& more, Stamp const& stamp, std::vector<Issuer> const& issuers);
  std::string describe(Stamp const& stamp) const;

  Cluster& cluster_;
  u32 warps_per_cta_ = 0;
  std::vector<WarpState> warps_;
  std::vector<Agent> agents_;
  std::vector<std::vector<Word>> words_;                // a CTA's
  std::vector<std::vector<u8>> used_;                   // of each kBlock of them, whether some is not as at the start
  std::vector<std::vector<MoreReaders>> more_;          // the second reader and the others
  std::vector<std::unordered_map<u32, Stamp>> visits_;  // to a CTA's memory, by other CTAs' warps: the last ones
  std::vector<std::vector<TmemCell>> tmem_;             // a CTA's, of every quarter all columns
  mutable std::unordered_map<u64, bool> allowed_;       // of two places in the code, whether they may race
  std::vector<Clock> named_;
  std::unordered_map<u32, Mbarrier> mbarriers_;
  Mbarrier cluster_barrier_;
  std::vector<Issuer> one_, issuers_;
  std::vector<TmemIssuer> tmem_issuers_;
  TmemStamp tensor_{};
  Stamp reader_{};
  WarpState const* only_ = nullptr;
};

// The cluster's checker, null where it is off.
inline Races* races(Warp const& w) { return w.cta->cluster->races.get(); }

}  // namespace emu
