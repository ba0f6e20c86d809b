// A kernel's body: scopes, declarations, labels and instructions.
#include <cctype>

#include "parser.h"

namespace emu {

size_t BodyParser::parse(std::string const& source, size_t begin, u32 line) {
  std::string pending;
  line_ = line;
  int vector_depth = 0;  // inside the braces of a vector operand
  for (size_t i = begin;; ++i) {
    if (i >= source.size()) fault("kernel %s: its body does not end", kernel_.name.c_str());
    char const c = source[i];
    line_ += c == '\n';
    if (vector_depth > 0 || (c == '{' && !trimmed(pending).empty() && trimmed(pending).back() != ':')) {
      vector_depth += (c == '{') - (c == '}');
      pending += c;
    } else if (c == '{') {
      statement(pending);  // labels
      pending.clear();
      scopes_.push_back({.parent = scope_, .registers = {}, .families = {}, .labels = {}});
      scope_ = int(scopes_.size()) - 1;
    } else if (c == '}') {
      statement(pending);
      pending.clear();
      if (scope_ == 0) {
        resolve_branches();
        Instruction end;
        end.flow = Instruction::kExit;
        end.text = "(end of the kernel)";
        end.line = line_;
        kernel_.code.push_back(end);
        find_exposed_results(kernel_);
        return i + 1;
      }
      scope_ = scopes_[scope_].parent;
    } else if (c == ';') {
      statement(pending);
      pending.clear();
    } else {
      pending += c;
    }
  }
}

void BodyParser::resolve_branches() {
  for (Branch const& branch : branches_) {
    i32& target = kernel_.code[branch.instruction].target;
    for (int s = branch.scope; s >= 0 && target < 0; s = scopes_[s].parent) {
      auto const found = scopes_[s].labels.find(branch.label);
      if (found != scopes_[s].labels.end()) target = found->second;
    }
    if (target < 0) fault("kernel %s: no label %s", kernel_.name.c_str(), branch.label.c_str());
  }
}

void BodyParser::statement(std::string text) {
  text = trimmed(text);
  for (;;) {  // labels
    size_t const colon = text.find(':');
    if (colon == std::string::npos || colon == 0 || text.compare(colon, 2, "::") == 0) break;
    bool label = true;
    for (size_t i = 0; i < colon; ++i) label = label && (isalnum(u8(text[i])) || text[i] == '_' || text[i] == '$');
    if (!label) break;
    scopes_[scope_].labels[text.substr(0, colon)] = i32(kernel_.code.size());
    text = trimmed(text.substr(colon + 1));
  }
  if (text.empty()) return;
  if (text.starts_with(".reg")) return declare_registers(text);
  if (text.starts_with(".shared")) return declare_shared(text);
  if (text.starts_with(".local")) return declare_local(text);
  if (text[0] == '.') return;  // .pragma and the like
  instruction(text);
}

BodyParser::Register BodyParser::allocate(u8 width) {
  u32 const offset = (kernel_.register_bytes + 63) / 64 * 64;
  kernel_.register_bytes = offset + kLanes * width;
  return {offset, width};
}

void BodyParser::declare_registers(std::string const& text) {
  std::string const rest = trimmed(text.substr(4));
  size_t const blank = rest.find_first_of(" \t");
  u8 const width = u8(type_bytes(rest.substr(0, blank)));
  for (std::string const& name : split(rest.substr(blank), ',')) {
    size_t const bracket = name.find('<');
    if (bracket != std::string::npos)
      scopes_[scope_].families[name.substr(0, bracket)] = width;
    else
      scopes_[scope_].registers[name] = allocate(width);
  }
}

void BodyParser::declare_shared(std::string const& text) {
  Declaration const d = parse_declaration(text);
  u32 const align = d.align ? d.align : d.element_bytes;
  u32 const offset = (kernel_.static_shared + align - 1) / align * align;
  static_shared_[d.name] = offset;
  kernel_.static_shared = offset + u32(d.element_bytes * d.count);
}

void BodyParser::declare_local(std::string const& text) {
  Declaration const d = parse_declaration(text);
  u32 const offset = (kernel_.local + 15) / 16 * 16;
  local_[d.name] = kLocalBit | offset;
  kernel_.local = offset + u32(d.element_bytes * d.count);
}

// Members of a family get their place in the register file when they are first named.
bool BodyParser::find_register(std::string const& name, Operand& operand) {
  size_t digits = name.size();
  while (digits > 0 && isdigit(u8(name[digits - 1]))) --digits;
  for (int s = scope_; s >= 0; s = scopes_[s].parent) {
    auto found = scopes_[s].registers.find(name);
    if (found == scopes_[s].registers.end() && digits < name.size()) {
      auto const family = scopes_[s].families.find(name.substr(0, digits));
      if (family != scopes_[s].families.end())
        found = scopes_[s].registers.emplace(name, allocate(family->second)).first;
    }
    if (found == scopes_[s].registers.end()) continue;
    operand.kind = Operand::kRegister;
    operand.offset = found->second.offset;
    operand.width = found->second.width;
    return true;
  }
  return false;
}

// [base + displacement] or [base, {coordinates}]
Operand BodyParser::memory_operand(std::string const& text) {
  Operand o;
  o.kind = Operand::kMemory;
  std::vector<std::string> const parts = split(std::string_view(text).substr(1, text.size() - 2), ',');
  std::string base = parts[0];
  if (size_t const plus = base.find('+', 1); plus != std::string::npos) {
    o.value = parse_number(trimmed(base.substr(plus + 1)));
    base = trimmed(base.substr(0, plus));
  }
  o.parts.push_back(operand(base));
  for (size_t i = 1; i < parts.size(); ++i) o.parts.push_back(operand(parts[i]));
  return o;
}

Operand BodyParser::symbol(std::string const& name) {
  Operand o;
  o.kind = Operand::kImmediate;
  for (Parameter const& parameter : kernel_.parameters)
    if (parameter.name == name) {
      o.symbol = Symbol::kParameter;
      o.value = parameter.offset;
      return o;
    }
  if (auto const found = static_shared_.find(name); found != static_shared_.end()) {
    o.symbol = Symbol::kStaticShared;
    o.value = found->second;
  } else if (module_.dynamic_shared.contains(name)) {
    o.symbol = Symbol::kDynamicShared;
  } else if (auto const local = local_.find(name); local != local_.end()) {
    o.value = local->second;
  } else if (auto const global = module_.global.find(name); global != module_.global.end()) {
    o.value = global->second;
  } else {
    fault("kernel %s: unknown name %s", kernel_.name.c_str(), name.c_str());
  }
  return o;
}

Operand BodyParser::operand(std::string const& text) {
  Operand o;
  if (text == "_" || text.empty()) return o;
  if (text[0] == '!') {
    o = operand(trimmed(text.substr(1)));
    o.negated = true;
  } else if (text[0] == '{') {
    o.kind = Operand::kVector;
    for (std::string const& part : split(std::string_view(text).substr(1, text.size() - 2), ','))
      o.parts.push_back(operand(part));
  } else if (text[0] == '[') {
    o = memory_operand(text);
  } else if (find_register(text, o)) {
    return o;
  } else if (int const number = special_register(text); number >= 0) {
    o.kind = Operand::kSpecial;
    o.value = u64(number);
  } else if (starts_with_digit(text)) {
    o.kind = Operand::kImmediate;
    o.value = parse_number(text);
  } else if (text[0] == '%') {
    fault("kernel %s: unknown register %s", kernel_.name.c_str(), text.c_str());
  } else {
    o = symbol(text);
  }
  return o;
}

void BodyParser::instruction(std::string text) {
  constexpr size_t kKeptText = 160;
  Instruction i;
  i.line = line_;
  i.text = text.substr(0, kKeptText);
  for (char& c : i.text)
    if (isspace(u8(c))) c = ' ';
  if (text[0] == '@') {
    size_t const blank = text.find_first_of(" \t\n");
    i.predicate_negated = text[1] == '!';
    std::string const name = text.substr(i.predicate_negated ? 2 : 1, blank - (i.predicate_negated ? 2 : 1));
    Operand o;
    if (!find_register(name, o)) fault("kernel %s: no predicate %s", kernel_.name.c_str(), name.c_str());
    i.predicate = i32(o.offset);
    text = trimmed(text.substr(blank));
  }
  size_t const blank = text.find_first_of(" \t\n{[");
  Mnemonic mnemonic(text.substr(0, blank));
  std::string const rest = blank == std::string::npos ? "" : trimmed(text.substr(blank));
  if (mnemonic.root() == "bra") {
    i.flow = Instruction::kBranch;
    branches_.push_back({kernel_.code.size(), rest, scope_});
  } else if (mnemonic.root() == "ret" || mnemonic.root() == "exit") {
    i.flow = Instruction::kExit;
  } else {
    if (mnemonic.root() != "call")
      for (std::string const& part : split(rest, ',')) {
        // a | b: a result and a predicate
        size_t const bar = part[0] == '{' || part[0] == '[' ? std::string::npos : part.find('|');
        i.operands.push_back(operand(trimmed(part.substr(0, bar))));
        if (bar == std::string::npos) continue;
        i.operands.push_back(operand(trimmed(part.substr(bar + 1))));
        i.has_result = true;
      }
    kernel_.has_wgmma |= mnemonic.root() == "wgmma";
    decode(i, std::move(mnemonic));
  }
  kernel_.code.push_back(std::move(i));
}

}  // namespace emu
