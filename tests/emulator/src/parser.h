// The parser's parts: a module (parse_module.cpp) and a kernel's body (parse_body.cpp).
#pragma once

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "ptx.h"
#include "text.h"

namespace emu {

constexpr u64 kLocalBit = 2ull << 60;  // generic addresses: 1 << 60 shared, 2 << 60 local, else the host's

struct ModuleSymbols {
  std::map<std::string, u64> global;  // address
  std::map<std::string, bool> dynamic_shared;
};

class BodyParser {
 public:
  BodyParser(Kernel& kernel, ModuleSymbols const& module) : kernel_(kernel), module_(module), scopes_(1) {}
  // From behind the opening brace, on that line of the text, to behind its counterpart; returns that place.
  size_t parse(std::string const& source, size_t begin, u32 line);

 private:
  struct Register {
    u32 offset;
    u8 width;
  };
  struct Scope {
    int parent = -1;
    std::map<std::string, Register> registers;
    std::map<std::string, u8> families;  // %r<100>: name without the number, to width
    std::map<std::string, i32> labels;
  };
  struct Branch {
    size_t instruction;
    std::string label;
    int scope;
  };

  void statement(std::string text);
  void declare_registers(std::string const& text);
  void declare_shared(std::string const& text);
  void declare_local(std::string const& text);
  void instruction(std::string text);
  Operand operand(std::string const& text);
  Operand memory_operand(std::string const& text);
  Operand symbol(std::string const& name);
  bool find_register(std::string const& name, Operand& operand);
  Register allocate(u8 width);
  void resolve_branches();

  Kernel& kernel_;
  ModuleSymbols const& module_;
  std::vector<Scope> scopes_;
  int scope_ = 0;
  u32 line_ = 0;
  std::vector<Branch> branches_;
  std::map<std::string, u32> static_shared_;
  std::map<std::string, u64> local_;
};

// ".align 16 .b8 name[32]" and what is left of it.
struct Declaration {
  std::string name;
  u32 align = 0;  // 0: not given
  u32 element_bytes = 1;
  u64 count = 1;
  bool array = false;
};
Declaration parse_declaration(std::string const& text);

}  // namespace emu
