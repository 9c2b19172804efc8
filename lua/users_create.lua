#!lua
-- Creates users with their opening balance, all or none; leaves users that exist as they are.
--
-- KEYS 1 meta    hash    partition state
--      2 outbox  stream
--      3.. user  hash    one per new user
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 opening balance (won)  4 the first user's id  5 from one id to the next
--      6 '1' where a name is the prefix and the id, else '0'  7 the name, or the prefix  8.. each user's name
-- Returns {'CREATED', epoch, seq} or ALREADY_EXISTS | PARTITION_CLOSED
-- Emits users_created
--@include partition
local meta, outbox = KEYS[1], KEYS[2]
local now, request_id, balance, first, step, prefixed, name =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
if redis.call('EXISTS', KEYS[3]) == 1 then return { 'ALREADY_EXISTS' } end
---- checks above, writes below -------------------------------------------------------------------------------------
local id = redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'users_created', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'first', first, 'step', step, 'count', #KEYS - 2, 'balance', balance, 'prefixed', prefixed,
  'name', name, 'prev', '')
redis.call('HSET', meta, 'seq', seq)
local entries, tail = 1, id
if balance == '0' then entries, tail = 0, '' end
for i = 3, #KEYS do
  redis.call('HSET', KEYS[i], 'name', ARGV[5 + i], 'balance', balance, 'entries', entries, 'tail', tail, 'open', 0)
end
return { 'CREATED', epoch, seq }
