use super::*;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::RefCell;
use proptest::prelude::*;
use ringfence_abi::queue::Place;

/// Memory that both sides see.
#[derive(Clone)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Shared {
    fn new(len_bytes: usize) -> Shared {
        Shared(Rc::new(RefCell::new(vec![0; len_bytes])))
    }
}

impl Words for Shared {
    fn load(&self, index: usize) -> u64 {
        let mut word = [0; 8];
        self.read(index * 8, &mut word);
        u64::from_le_bytes(word)
    }

    fn store(&self, index: usize, value: u64) {
        self.write(index * 8, &value.to_le_bytes());
    }
}

impl Data for Shared {
    fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        let bytes = self.0.borrow();
        let Some(from) = bytes.get(offset..offset + to.len()) else { return false };
        to.copy_from_slice(from);
        true
    }

    fn write(&self, offset: usize, from: &[u8]) -> bool {
        let mut bytes = self.0.borrow_mut();
        let Some(to) = bytes.get_mut(offset..offset + from.len()) else { return false };
        to.copy_from_slice(from);
        true
    }
}

/// The requests and outcomes are numbers; outcome 13 cannot be true. A request is for the unit of
/// its tens digit.
struct Numbers;

const REQUESTS: usize = 4;
const URGENT: usize = 2;
const NUMBERS: usize = REQUESTS + URGENT;
const SUBMIT: Place = Place::new(0, NUMBERS.next_power_of_two());
const COMPLETE: Place = Place::new(SUBMIT.end(), SUBMIT.capacity);

impl Rings for Numbers {
    const RINGS: [Place; 2] = [SUBMIT, COMPLETE];
}

impl Protocol for Numbers {
    type Info = ();
    type Request = u64;
    type Outcome = u64;
    type Unit = u64;
    const NAMES: [&'static str; 2] = ["number", "numbers"];
    const QUEUE_BYTES: usize = (COMPLETE.end() + 2 * NUMBERS) * 8;
    const REQUESTS: usize = REQUESTS;
    const URGENT: usize = URGENT;
    const MAX_DATA: usize = 16;
    const NEWS: Reply = Reply::empty();

    fn depth(_: &()) -> usize {
        REQUESTS
    }

    fn unit(request: &u64) -> u64 {
        request / 10
    }

    fn write(memory: &impl Words, number: usize, request: &u64, data: Transfer) {
        memory.store(COMPLETE.end() + number, *request << 32 | data.address << 8 | u64::from(data.len_bytes));
    }

    fn read(memory: &impl Words, number: usize) -> Result<u64, u64> {
        match memory.load(COMPLETE.end() + NUMBERS + number) {
            13 => Err(13),
            outcome => Ok(outcome),
        }
    }

    fn describe(memory: &impl Words, number: usize) -> (passed::Request, u32) {
        let word = memory.load(COMPLETE.end() + number);
        ([word >> 32, 0, 0], u32::from(word as u8))
    }

    fn result(memory: &impl Words, number: usize) -> u32 {
        memory.load(COMPLETE.end() + NUMBERS + number) as u32
    }

    fn detail(_: &impl Words, number: usize) -> Detail {
        Detail::new(&[number as u8])
    }
}

/// The kernel's account, and the driver's end of the queues.
struct Pair {
    account: Account<Numbers, Shared, Shared>,
    queues: Shared,
    data: Shared,
    submit: Consumer<Submit<Numbers>>,
    complete: Producer<Complete<Numbers>>,
}

impl Pair {
    fn new() -> Pair {
        let (queues, data) = (Shared::new(Numbers::QUEUE_BYTES), Shared::new(REQUESTS * Numbers::MAX_DATA));
        let memory = Memory { queues: queues.clone(), data: data.clone(), data_address: 0x100, data_start: 0x200 };
        let account = Account::new(memory, REQUESTS);
        Pair { account, queues, data, submit: Consumer::new(), complete: Producer::new() }
    }

    /// Takes a request as the driver.
    fn take(&mut self) -> Option<usize> {
        self.submit.take(&self.queues).unwrap().map(|number| number as usize)
    }

    /// Completes a request as the driver.
    fn complete(&mut self, number: usize, outcome: u64) {
        self.queues.store(COMPLETE.end() + NUMBERS + number, outcome);
        self.complete.put(&self.queues, number as u64).unwrap();
    }

    fn begin(&mut self, request: u64, moves: Moves) -> Option<Ticket> {
        self.account.begin(Some(request), &request, moves).unwrap()
    }
}

#[test]
fn an_address_is_in_the_data_of_the_requests_or_nowhere() {
    const END: u64 = 0x200 + (REQUESTS * Numbers::MAX_DATA) as u64;
    let pair = Pair::new();
    let offset = |address, len_bytes| pair.account.data_at(address, len_bytes).map(|(_, offset)| offset);
    assert_eq!([offset(0x200, 16), offset(0x210, 48), offset(END - 1, 1)], [Some(0), Some(16), Some(63)]);
    for (address, len_bytes) in
        [(0x1ff, 1), (0x1ff, 2), (0x200, 65), (END - 1, 2), (END, 1), (0, 16), (u64::MAX, 1), (0x210, usize::MAX)]
    {
        assert_eq!(offset(address, len_bytes), None, "{len_bytes} bytes at {address:#x}");
    }
}

#[test]
fn a_request_goes_there_and_back_with_its_data() {
    let mut pair = Pair::new();
    let ticket = pair.begin(7, Moves::Out(b"there")).unwrap();
    let number = pair.take().unwrap();
    assert_eq!(pair.queues.load(COMPLETE.end() + number), 7 << 32 | (0x100 + 16 * number as u64) << 8 | 5);
    let mut seen = [0; 5];
    pair.data.read(16 * number, &mut seen);
    assert_eq!(&seen, b"there");
    assert_eq!(pair.account.finish(ticket, &mut [], None, u64::clone), None, "it is under way");
    pair.data.write(16 * number, b"back!");
    pair.complete(number, 1);
    assert_eq!(pair.account.collect(), Ok(()));
    let mut data = [0; 5];
    assert_eq!(pair.account.finish(ticket, &mut data, None, u64::clone), Some(Ok(1)));
    assert_eq!(&data, b"back!");
    assert_eq!(pair.account.finish(ticket, &mut data, None, u64::clone), None, "it is over");
    assert_eq!(pair.account.count(), 0);
}

#[test]
fn a_trace_sees_each_request_once_on_each_side() {
    fn passed(pair: &mut Pair, side: Side) -> Vec<String> {
        let mut seen = passed::Words(Vec::new());
        pair.account.passed(side, &mut seen);
        seen.0
    }
    let mut pair = Pair::new();
    pair.begin(7, Moves::Out(b"there")).unwrap();
    pair.begin(8, Moves::None).unwrap();
    assert_eq!(pair.account.moved(), Moved { count: 2, bytes: 5 });
    assert_eq!(passed(&mut pair, Side::Kernel), ["request 0 at 0, 5: [7, 0, 0]", "request 1 at 1, 0: [8, 0, 0]"]);
    assert_eq!(passed(&mut pair, Side::Kernel), [""; 0]);
    let (_, second) = (pair.take().unwrap(), pair.take().unwrap());
    pair.complete(second, 5);
    // Lies: a request that the driver does not have, and an outcome that cannot be true.
    pair.complete(REQUESTS - 1, 0);
    pair.complete(NUMBERS, 0);
    assert_eq!(passed(&mut pair, Side::Driver), ["done 1 at 1: 5 [1]"]);
    assert_eq!(passed(&mut pair, Side::Driver), [""; 0]);
    assert!(pair.account.collect().is_err());
}

#[test]
fn the_oldest_is_another_when_a_driver_gets_on() {
    let mut pair = Pair::new();
    assert_eq!(pair.account.oldest(), None);
    for request in 0..3 {
        pair.begin(request, Moves::None).unwrap();
    }
    let first = pair.account.oldest();
    let numbers: Vec<usize> = (0..3).map(|_| pair.take().unwrap()).collect();
    pair.complete(numbers[1], 0);
    pair.account.collect().unwrap();
    assert_eq!(pair.account.oldest(), first, "it holds the first one still");
    pair.complete(numbers[0], 0);
    pair.account.collect().unwrap();
    assert_ne!(pair.account.oldest(), first);
    assert!(pair.account.oldest().is_some());
}

#[test]
fn there_are_as_many_requests_as_there_are() {
    let mut pair = Pair::new();
    let tickets: Vec<Ticket> = (0..4).map(|request| pair.begin(request, Moves::None).unwrap()).collect();
    assert_eq!(pair.begin(4, Moves::None), None);
    for _ in 0..4 {
        let number = pair.take().unwrap();
        pair.complete(number, 0);
    }
    pair.account.collect().unwrap();
    // A request that is done is not free until its outcome was fetched.
    assert_eq!(pair.begin(4, Moves::None), None);
    pair.account.finish(tickets[2], &mut [], None, u64::clone);
    assert!(pair.begin(4, Moves::None).is_some());
}

#[test]
fn an_urgent_request_gets_through_when_all_others_are_under_way() {
    let mut pair = Pair::new();
    // A write that was abandoned holds back later requests to its unit, but no urgent request.
    let held = pair.begin(0, Moves::Out(b"data")).unwrap();
    pair.account.abandon(held);
    for request in 1..4 {
        pair.begin(10 * request, Moves::None).unwrap();
    }
    assert_eq!(pair.begin(4, Moves::None), None);
    let urgent = pair.account.begin_urgent(1, &99).unwrap().expect("it has a number of its own");
    assert_eq!(urgent.number(), REQUESTS + 1);
    assert_eq!(pair.account.begin_urgent(1, &98).unwrap(), None, "one of a kind at a time");
    let other = pair.account.begin_urgent(0, &97).unwrap().expect("another kind");
    assert_eq!(pair.account.begin_urgent(URGENT, &96).unwrap(), None, "there is no such kind");
    let taken: Vec<usize> = core::iter::from_fn(|| pair.take()).collect();
    assert_eq!(taken[4..], [REQUESTS + 1, REQUESTS], "in their order, behind the others");
    // The urgent request has no data, neither there nor back.
    assert_eq!(pair.queues.load(COMPLETE.end() + REQUESTS + 1), 99 << 32);
    pair.complete(REQUESTS + 1, 7);
    assert_eq!(pair.account.collect(), Ok(()));
    let mut data = [5; 4];
    assert_eq!(pair.account.finish(urgent, &mut data, None, u64::clone), Some(Ok(7)));
    assert_eq!(data, [5; 4]);
    // The number of an urgent request is its own: no other request gets it.
    assert_eq!(pair.begin(5, Moves::None), None);
    assert!(pair.account.begin_urgent(1, &98).unwrap().is_some());
    let mut repeated = Vec::new();
    pair.account.fail_all(|number| repeated.push(number));
    assert_eq!(repeated, [10, 20, 30], "it is about requests that go as well");
    assert_eq!(pair.account.finish(other, &mut [], None, u64::clone), Some(Err(Lost)));
}

#[test]
fn each_lie_is_found() {
    type Tell = fn(&mut Pair);
    let lies: [(&str, Tell, Wrong); 7] = [
        ("not asked for", |pair| pair.complete(REQUESTS, 0), Wrong::Entry("complete", REQUESTS as u64)),
        ("not lent", |pair| pair.complete(2, 0), Wrong::Entry("complete", 2)),
        (
            "no such number",
            |pair| assert_eq!(pair.complete.put(&pair.queues, 99), Ok(true)),
            Wrong::Entry("complete", 99),
        ),
        ("not taken yet", |pair| pair.complete(0, 0), Wrong::Entry("complete", 0)),
        (
            "twice",
            |pair| {
                let number = pair.take().unwrap();
                pair.complete(number, 0);
                pair.complete(number, 0);
            },
            Wrong::Entry("complete", 0),
        ),
        (
            "an outcome that cannot be",
            |pair| {
                let number = pair.take().unwrap();
                pair.complete(number, 13);
            },
            Wrong::Entry("complete", 13),
        ),
        (
            "a position too far",
            |pair| pair.queues.store(COMPLETE.base, 9),
            Wrong::Position("complete", Lie { claimed: 9, own: 0 }),
        ),
    ];
    for (what, lie, wrong) in lies {
        let mut pair = Pair::new();
        pair.begin(0, Moves::None).unwrap();
        lie(&mut pair);
        assert_eq!(pair.account.collect(), Err(wrong), "{what}");
    }
}

#[test]
fn what_was_under_way_when_a_driver_ended_is_repeated_and_what_nobody_waits_for_is_not() {
    let mut pair = Pair::new();
    let [first, second, third] = [1, 2, 3].map(|request| pair.begin(request, Moves::None).unwrap());
    let number = pair.take().unwrap();
    pair.complete(number, 5);
    pair.account.collect().unwrap();
    pair.account.abandon(third);
    let mut repeated = Vec::new();
    pair.account.fail_all(|number| repeated.push(number));
    assert_eq!(repeated, [2]);
    assert_eq!(pair.account.finish(first, &mut [], None, u64::clone), Some(Ok(5)), "it was done");
    assert_eq!(pair.account.finish(second, &mut [], None, u64::clone), Some(Err(Lost)));
}

#[test]
fn nothing_overtakes_a_write_that_nobody_waits_for() {
    let mut pair = Pair::new();
    let write = pair.begin(10, Moves::Out(b"x")).unwrap();
    pair.account.abandon(write);
    assert_eq!(pair.begin(19, Moves::In(1)), None, "for the same unit");
    assert!(pair.begin(20, Moves::In(1)).is_some(), "for another one");
    let number = pair.take().unwrap();
    pair.complete(number, 0);
    pair.account.collect().unwrap();
    assert!(pair.begin(19, Moves::In(1)).is_some());
    // An abandoned read holds nothing up.
    let read = pair.begin(30, Moves::In(1)).unwrap();
    pair.account.abandon(read);
    assert!(pair.begin(31, Moves::None).is_some());
}

#[test]
fn data_is_cut_off_where_a_request_s_own_part_ends() {
    let mut pair = Pair::new();
    pair.begin(1, Moves::Out(&[1; 99])).unwrap();
    let mut next = [9];
    pair.data.read(16, &mut next);
    assert_eq!(next, [0], "the next request's");
}

proptest! {
    /// No value that the driver writes into the queues makes the account panic, or give a request
    /// away twice.
    #[test]
    fn no_driver_confuses_the_account(acts in prop::collection::vec((0_u8..5, any::<u64>()), 0..100)) {
        let mut pair = Pair::new();
        let mut tickets: Vec<Ticket> = Vec::new();
        for (act, value) in acts {
            match act {
                0 => if let Ok(Some(ticket)) = pair.account.begin(None, &value, Moves::In(8)) {
                    prop_assert!(!tickets.contains(&ticket));
                    tickets.push(ticket);
                },
                1 => pair.queues.store((value % 48) as usize, value >> 8),
                2 => {
                    // A driver whose own queue is inconsistent goes on.
                    let _ = pair.complete.put(&pair.queues, value % 6);
                }
                3 => if pair.account.collect().is_err() { break },
                _ => tickets.retain(|ticket| pair.account.finish(*ticket, &mut [0; 8], None, u64::clone).is_none()),
            }
            prop_assert!(pair.account.count() <= REQUESTS);
        }
    }
}
