#!lua
-- Creates users with their opening balance, all or none: none if any of them exists.
--
-- KEYS 1 meta    hash    partition state
--      2 outbox  stream
--      3 record  list    idempotency record
--      4.. user  hash    one per new user
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 opening balance (won)
--      6 the first user's id  7 from one id to the next  8 '1' where a name is the prefix and the id, else '0'
--      9 the name, or the prefix  10.. each user's name
-- Returns {'CREATED', epoch, seq} or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS
--      or ALREADY_EXISTS | PARTITION_CLOSED
-- Emits users_created
--@include lists
--@include partition
--@include idempotency
local meta, outbox, record = KEYS[1], KEYS[2], KEYS[3]
local now, fingerprint, ttl, request_id, balance, first, step, prefixed, name =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
for i = 4, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then return { 'ALREADY_EXISTS' } end
end
local reply = { 'CREATED', epoch, seq }
---- checks above, writes below -------------------------------------------------------------------------------------
local id = redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'users_created', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'first', first, 'step', step, 'count', #KEYS - 3, 'balance', balance, 'prefixed', prefixed,
  'name', name, 'prev', '', record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
local entries, tail = 1, id
if balance == '0' then entries, tail = 0, '' end
for i = 4, #KEYS do
  redis.call('HSET', KEYS[i], 'name', ARGV[6 + i], 'balance', balance, 'entries', entries, 'tail', tail, 'open', 0)
end
return remember(record, fingerprint, ttl, reply)
