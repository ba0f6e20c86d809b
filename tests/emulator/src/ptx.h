// A module's text as the interpreter sees it: kernels, their instructions and operands.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base.h"

namespace emu {

struct Warp;
struct Instruction;
class SourceLines;

// What a symbol in place of a number stands for.
enum class Symbol : u8 { kNone, kParameter, kStaticShared, kDynamicShared };

struct Operand {
  enum Kind : u8 { kNone, kRegister, kImmediate, kSpecial, kVector, kMemory };
  Kind kind = kNone;
  u8 width = 0;          // of a register, in bytes; a predicate has 1
  bool negated = false;  // !%p
  Symbol symbol = Symbol::kNone;
  u32 offset = 0;  // of a register in the warp's register file, which holds the 32 lanes of each side by side
  u64 value = 0;   // of an immediate; a special register's number; a memory operand's displacement
  std::vector<Operand> parts;  // of a vector; of a memory operand its base and, for tensors, the coordinates
};

// Runs an instruction for the lanes of `mask`, which is never empty.
using Execute = void (*)(Warp&, Instruction const&, u32 mask);

enum class Space : u8 { kGlobal, kShared, kParameter, kGeneric, kLocal };

struct Instruction {
  enum Flow : u8 { kNext, kBranch, kExit };
  Execute execute = nullptr;
  i32 predicate = -1;  // offset of its register, -1: none
  bool predicate_negated = false;
  Flow flow = kNext;
  i32 target = -1;  // of a branch: number of an instruction

  // What the decoder leaves for `execute`; each family says what it means there.
  Space space = Space::kGeneric;
  u16 bytes = 0;  // of an element
  u16 count = 1;  // elements; columns of a matrix product
  u32 option = 0;
  bool is_move = false;
  bool has_result = false;       // atom but not red, shfl with a predicate, ...
  bool reads_first = false;      // its first operand is no result, or one that it also reads
  bool result_exposed = false;   // exposed.cpp
  Execute without_it = nullptr;  // of a synchronisation instruction: what runs where mutate.py removes it
  u32 line = 0;                  // of the module's text
  std::vector<Operand> operands;
  std::string text;
};

struct Parameter {
  std::string name;
  u32 size, offset;
};

struct Kernel {
  std::string name;
  std::vector<Parameter> parameters;
  u32 parameter_bytes = 0;
  std::vector<Instruction> code;
  u32 register_bytes = 0;  // of a warp
  u32 static_shared = 0;
  u32 local = 0;                                                             // bytes a thread
  u32 max_threads = 0, required_threads = 0, min_ctas = 0, cluster[3] = {};  // 0: not given
  int arch = 0;
  bool has_wgmma = false;
  SourceLines const* lines = nullptr;
};

// Notes of each instruction whether it writes a register that might be read without having been written. All others
// need no poison.
void find_exposed_results(Kernel& kernel);

// Kernels by name; `variables` receives the module's variables, name to address.
std::map<std::string, Kernel*> parse_module(std::string const& ptx, std::map<std::string, u64>& variables);

// An instruction's name, whose parts the decoder takes one by one: a part that nobody took makes the instruction
// unknown, so that no form is run as if it were another.
class Mnemonic {
 public:
  explicit Mnemonic(std::string const& opcode);
  std::string const& root() const { return parts_[0]; }
  std::string const& type() const { return parts_.back(); }
  bool has(char const* part) const;
  bool take(char const* part);
  std::string take_one_of(std::initializer_list<char const*> parts);  // empty: none of them is there
  void take_type() { taken_.back() = true; }
  std::string take_at(size_t place);                      // empty: there is none
  void ignore(std::initializer_list<char const*> parts);  // without effect on the result
  bool finished() const;

 private:
  std::vector<std::string> parts_;
  std::vector<bool> taken_;
};

// Finds `execute`, or an implementation that stops the run with the instruction's text when it is reached.
void decode(Instruction& instruction, Mnemonic mnemonic);
Execute unknown_instruction();  // what that implementation is

u32 type_bytes(std::string const& type);  // u32, b64, f32x2, pred; with or without a dot

int special_register(std::string const& name);  // -1: unknown
u64 special_value(Warp const& warp, int lane, int number);

}  // namespace emu
