//! What the oldest kernel ([`super::MIN_KERNEL`]) takes, looked for in the compiled programs themselves: helpers,
//! instructions, and the room on the stack, which that kernel counts more coarsely than later ones.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya_obj::Object;
use aya_obj::generated::bpf_insn;

use super::object;

/// The last helper of Linux 5.10 (`bpf_redirect_peer`).
const LAST_HELPER: i32 = 155;

/// `bpf_xdp_get_buff_len` of Linux 5.18, where frames have several buffers: what no constant switches on is taken out
/// before the helper is looked for.
const BUFFER_LENGTH: i32 = 188;

/// Most bytes on the stack of a program and of all that it calls at one time.
const STACK: u32 = 512;
/// The kernel rounds each of them up: 5.10 to this, 6.8 and later to 16.
const ROUNDED: u32 = 32;
/// Most functions that call each other, the program among them.
const FRAMES: usize = 8;

const FRAME_POINTER: u8 = 10;
const CLASS: u8 = 0x07;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU: u8 = 0x04;
const ALU64: u8 = 0x07;
const LOAD_WIDE: u8 = 0x18;
const MOV_REGISTER: u8 = 0xBF;
const ADD_NUMBER: u8 = 0x07;
const CALL: u8 = 0x85;
/// Mode of a store that is atomic.
const ATOMIC: u8 = 0xC0;

/// A program or a function of it.
#[derive(Debug, Default)]
struct Function {
    stack_bytes: u32,
    /// Where those begin that it calls.
    calls: BTreeSet<usize>,
}

/// Each program of an object with all that it calls behind it.
fn programs(object: &[u8]) -> BTreeMap<String, Vec<bpf_insn>> {
    let mut object = Object::parse(object).expect("an object");
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&text).expect("calls that lead somewhere");
    let code = |program: &aya_obj::Program| object.functions[&program.function_key()].instructions.clone();
    object
        .programs
        .iter()
        .map(|(name, program)| (name.clone(), code(program)))
        .collect()
}

/// The functions by where they begin.
fn functions(code: &[bpf_insn]) -> BTreeMap<usize, Function> {
    let target = |at: usize| (at as i64 + 1 + i64::from(code[at].imm)) as usize;
    let is_call = |at: usize| code[at].code == CALL && code[at].src_reg() == 1;
    let mut found: BTreeMap<usize, Function> = (0..code.len())
        .filter(|at| is_call(*at))
        .map(|at| (target(at), Function::default()))
        .collect();
    found.insert(0, Function::default());
    let starts: Vec<usize> = found.keys().copied().chain([code.len()]).collect();
    for range in starts.windows(2) {
        let function = found.get_mut(&range[0]).expect("a function");
        function.stack_bytes = stack_bytes(&code[range[0]..range[1]]);
        function.calls = (range[0]..range[1])
            .filter(|at| is_call(*at))
            .map(target)
            .collect();
    }
    found
}

/// How far below the frame pointer a function reaches: by itself, or through registers that were made from it.
fn stack_bytes(code: &[bpf_insn]) -> u32 {
    let mut below = [None::<i64>; 11];
    below[usize::from(FRAME_POINTER)] = Some(0);
    let mut lowest = 0;
    for instruction in code {
        let (to, from) = (
            usize::from(instruction.dst_reg()),
            usize::from(instruction.src_reg()),
        );
        let place = match instruction.code & CLASS {
            LDX => below[from],
            ST | STX => below[to],
            _ => None,
        };
        if let Some(place) = place {
            lowest = lowest.min(place + i64::from(instruction.off));
        }
        match instruction.code {
            MOV_REGISTER => below[to] = below[from],
            ADD_NUMBER => {
                below[to] = below[to].map(|place| place + i64::from(instruction.imm));
                lowest = lowest.min(below[to].unwrap_or(0));
            }
            code if code == LOAD_WIDE || matches!(code & CLASS, LDX | ALU | ALU64) => below[to] = None,
            _ => {}
        }
    }
    lowest.unsigned_abs() as u32
}

/// The functions that call each other from `start` on, of those that together have most on the stack; how much that is,
/// and the most functions that call each other.
fn deepest(functions: &BTreeMap<usize, Function>, start: usize) -> (u32, usize, Vec<usize>) {
    let function = &functions[&start];
    let own = function.stack_bytes.max(1).next_multiple_of(ROUNDED);
    let below = function.calls.iter().map(|call| deepest(functions, *call));
    let (bytes, frames, mut way) = below.fold((0, 0, Vec::new()), |most, other| {
        let frames = most.1.max(other.1);
        let (bytes, _, way) = if other.0 > most.0 { other } else { most };
        (bytes, frames, way)
    });
    way.insert(0, start);
    (own + bytes, frames + 1, way)
}

/// The names of functions by how many instructions they have, which is how they are found again behind a program.
fn names(object: &[u8]) -> BTreeMap<usize, String> {
    let object = Object::parse(object).expect("an object");
    let named = object.functions.values();
    named
        .map(|function| (function.instructions.len(), function.name.clone()))
        .collect()
}

#[test]
fn what_calls_each_other_fits_the_stack_of_the_oldest_kernel() {
    for object in [object::LB_PLAIN, object::LB, object::DECAP_PLAIN] {
        let names = names(object);
        for (name, code) in programs(object) {
            let functions = functions(&code);
            let (bytes, frames, way) = deepest(&functions, 0);
            println!(
                "{name}: {} functions, {bytes} bytes of stack, {frames} frames",
                functions.len()
            );
            let way: Vec<String> = way
                .iter()
                .map(|start| {
                    let next = functions.range(start + 1..).next();
                    let end = next.map_or(code.len(), |(next, _)| *next);
                    let own = functions[start].stack_bytes;
                    format!("{own} {}", names.get(&(end - start)).map_or("?", String::as_str))
                })
                .collect();
            assert!(
                bytes <= STACK,
                "{name}: {bytes} bytes of stack: {}",
                way.join(" -> ")
            );
            assert!(frames <= FRAMES, "{name}: {frames} frames");
        }
    }
}

#[test]
fn every_helper_and_every_instruction_is_known_to_the_oldest_kernel() {
    for object in [object::LB_PLAIN, object::DECAP_PLAIN] {
        for (name, code) in programs(object) {
            let mut wide = false;
            for (at, instruction) in code.iter().enumerate() {
                // The second half of a 64-bit constant is no instruction.
                if wide {
                    wide = false;
                    continue;
                }
                wide = instruction.code == LOAD_WIDE;
                let (code, class) = (instruction.code, instruction.code & CLASS);
                if code == CALL && instruction.src_reg() == 0 {
                    assert!(
                        instruction.imm <= LAST_HELPER || instruction.imm == BUFFER_LENGTH,
                        "{name}, {at}: helper {}",
                        instruction.imm
                    );
                }
                // Linux 5.12 has more than adding. Linux 6.6 has signed loads, moves and divisions, byte swaps of any
                // register and long jumps: in bits that were 0 or in codes that were nobody's.
                let later = match class {
                    STX if code & ATOMIC == ATOMIC => instruction.imm != 0,
                    LDX => code & 0xE0 == 0x80,
                    JMP32 => code == 0x06,
                    ALU | ALU64 => instruction.off != 0 || code == 0xD7,
                    JMP => code >> 4 > 0xD,
                    _ => false,
                };
                assert!(
                    !later,
                    "{name}, {at}: instruction {code:#04x}, offset {}, number {}",
                    instruction.off, instruction.imm
                );
            }
        }
    }
}

#[test]
fn the_stack_is_counted_through_copies_of_the_frame_pointer() {
    let instruction = |code: u8, to: u8, from: u8, off: i16, imm: i32| {
        let registers = bpf_insn::new_bitfield_1(to, from);
        bpf_insn {
            code,
            _bitfield_align_1: [],
            _bitfield_1: registers,
            off,
            imm,
        }
    };
    let code = [
        instruction(0x7B, 10, 1, -8, 0),
        instruction(MOV_REGISTER, 2, 10, 0, 0),
        instruction(ADD_NUMBER, 2, 0, 0, -40),
        instruction(CALL, 0, 1, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
        instruction(0x7A, 10, 0, -70, 0),
        instruction(0x95, 0, 0, 0, 0),
    ];
    let functions = functions(&code);
    assert_eq!(functions[&0].stack_bytes, 40);
    assert_eq!(functions[&5].stack_bytes, 70);
    assert_eq!(deepest(&functions, 0), (64 + 96, 2, vec![0, 5]));
}
