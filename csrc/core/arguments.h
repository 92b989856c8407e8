// How an operator names its arguments: once, in the order of its declaration, which is inputs, attributes, outputs.
//
//   SBHAL_ARGUMENTS(SpikeEncode, Tensor x; double k, vth_min, vth_max; Text mean_dtype; Output counts, v_threshold;)
//
// is a struct of these fields together with their text. By the text the module writes the objects of a call into the
// struct and names them in errors, and it is what the declaration is compared with when the module is loaded.
#pragma once
#include "tensor.h"

namespace sbhal {

struct Optional : Tensor {};  // may be absent
struct InPlace : Tensor {};   // is written too, and has memory of its own for every element
struct Output : Tensor {};    // contiguous; absent while a call is only planned
using Text = const char*;

constexpr int kMaxArguments = 48;

// What a field of a struct of arguments may be.
struct FieldType {
  const char* name;
  char code;
  int bytes, alignment;
  int order;  // inputs, attributes, outputs
};
constexpr FieldType kFieldTypes[] = {
    {"Tensor", 'T', sizeof(Tensor), alignof(Tensor), 0},    {"Optional", 'O', sizeof(Optional), alignof(Optional), 0},
    {"InPlace", 'W', sizeof(InPlace), alignof(InPlace), 0}, {"double", 'd', sizeof(double), alignof(double), 1},
    {"int64_t", 'i', sizeof(int64_t), alignof(int64_t), 1}, {"bool", 'b', sizeof(bool), alignof(bool), 1},
    {"Text", 's', sizeof(Text), alignof(Text), 1},          {"Output", 'R', sizeof(Output), alignof(Output), 2}};

struct Field {
  const FieldType* type;
  int offset;        // in the struct
  const char* name;  // of `length` characters
  int length;
};

struct Fields {
  Field at[kMaxArguments];
  int count, given;  // of which the first are inputs and attributes
  int bytes;         // of the struct
  bool sound;        // the text could be read
};

// A call on its way to its kernel.
struct Call {
  const KernelEntry* entry;
  const Fields* fields;
  void* arguments;          // their struct
  void* planned;            // kMaxPlanned bytes
  int64_t workspace_bytes;  // that the plan asked for
  Launch launch;

  template <class T> T* at(int field) const {
    return reinterpret_cast<T*>(static_cast<char*>(arguments) + fields->at[field].offset);
  }
  // Null for an attribute.
  Tensor* tensor(int field) const { return fields->at[field].type->order == 1 ? nullptr : at<Tensor>(field); }
};

// One argument of a kernel whose functions take them one by one, not as a struct.
union Value {
  Tensor tensor;
  double number;
  int64_t integer;
  bool flag;
  Text text;
};
constexpr int kMaxArgumentBytes = kMaxArguments * sizeof(Value);

// Kernels are compiled several times: what they evaluate while they are compiled has no linkage to share.
namespace {

constexpr int word_length(const char* text) {
  int length = 0;
  while ((text[length] >= 'a' && text[length] <= 'z') || (text[length] >= 'A' && text[length] <= 'Z') ||
         (text[length] >= '0' && text[length] <= '9') || text[length] == '_')
    ++length;
  return length;
}

constexpr const char* skip_spaces(const char* text) {
  while (*text == ' ') ++text;
  return text;
}

// Null if the word is none of the types.
constexpr const FieldType* field_type(const char* word, int length) {
  for (const FieldType& type : kFieldTypes) {
    int same = 0;
    while (same < length && type.name[same] == word[same]) ++same;
    if (same == length && !type.name[same]) return &type;
  }
  return nullptr;
}

constexpr int aligned(int bytes, int alignment) { return (bytes + alignment - 1) / alignment * alignment; }

// Of a kernel without a struct there is a letter an argument, each in a Value.
constexpr Fields values_of(const char* letters) {
  Fields fields = {};
  for (; *letters; ++letters)
    for (const FieldType& type : kFieldTypes)
      if (type.code == *letters && fields.count < kMaxArguments) {
        fields.at[fields.count] = {&type, fields.bytes, "", 0};
        ++fields.count, fields.given += type.order < 2, fields.bytes += sizeof(Value);
      }
  fields.sound = true;
  return fields;
}

// The fields of a struct, and where the platform's rules for layout put them.
constexpr Fields fields_of(const char* text) {
  const char* end = text;
  while (*end && *end != ';') ++end;
  if (!*end) return values_of(text);
  Fields fields = {};
  int order = 0, alignment = 1;
  for (text = skip_spaces(text); *text; text = skip_spaces(text + 1)) {
    int length = word_length(text);
    const FieldType* const type = field_type(text, length);
    if (!type || type->order < order) return fields;
    order = type->order;
    alignment = type->alignment > alignment ? type->alignment : alignment;
    do {
      text = skip_spaces(text + length + (*text == ','));
      length = word_length(text);
      if (!length || fields.count == kMaxArguments) return fields;
      const int offset = aligned(fields.bytes, type->alignment);
      fields.at[fields.count++] = {type, offset, text, length};
      fields.given += type->order < 2;
      fields.bytes = offset + type->bytes;
      text = skip_spaces(text + length);
      length = 0;
    } while (*text == ',');
    if (*text != ';') return fields;
  }
  fields.bytes = aligned(fields.bytes, alignment);
  fields.sound = fields.count > 0;
  return fields;
}

}  // namespace
}  // namespace sbhal

#define SBHAL_ARGUMENTS(name, ...)                                                                               \
  struct name {                                                                                                  \
    __VA_ARGS__                                                                                                  \
    static constexpr char kText[] = #__VA_ARGS__;                                                                \
  };                                                                                                             \
  static_assert(::sbhal::fields_of(name::kText).sound,                                                           \
                #name ": Tensor, Optional, InPlace; then double, int64_t, bool, Text; then Output; at most 48"); \
  static_assert(::sbhal::fields_of(name::kText).bytes == sizeof(name), #name " is not laid out as its text says");
