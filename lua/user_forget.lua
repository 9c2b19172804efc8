#!lua
-- Forgets a user: the name is gone, what the user has and did stays under the number. A forgotten user is like one that never was,
-- but stays so.
--
-- KEYS 1 meta    hash    partition state; forgotten: changes with each user that is forgotten
--      2 outbox  stream
--      3 user    hash    name balance entries tail open ...
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 user id  4 '1' to forfeit the balance
-- Returns {'FORGOTTEN', epoch, seq, the new value of forgotten} or USER_NOT_FOUND | ORDERS_OPEN | BALANCE_LEFT | PARTITION_CLOSED
-- Emits user_forgotten
--@include lists
--@include partition
local meta, outbox, user = KEYS[1], KEYS[2], KEYS[3]
local now, request_id, user_id, forfeits = current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]

local epoch, seq, forgotten = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local u = redis.call('HMGET', user, 'name', 'balance', 'entries', 'tail', 'open')
if not u[1] then return { 'USER_NOT_FOUND' } end
if u[5] ~= '0' then return { 'ORDERS_OPEN' } end
local balance, entry_no = u[2], tonumber(u[3])
if balance ~= '0' and forfeits ~= '1' then return { 'BALANCE_LEFT' } end
if balance ~= '0' then entry_no = entry_no + 1 end
forgotten = tonumber(forgotten or 0) + 1
---- checks above, writes below -------------------------------------------------------------------------------------
-- A version that does not know the event must not project it.
local id = redis.call('XADD', outbox, '*', 'v', 5, 'kind', 'user_forgotten', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'user', user_id, 'debit', balance, 'before', balance, 'after', 0, 'entry_no', whole(entry_no), 'prev', u[4])
redis.call('HSET', meta, 'seq', seq, 'forgotten', forgotten)
redis.call('HDEL', user, 'name')
if balance ~= '0' then redis.call('HSET', user, 'balance', 0, 'entries', whole(entry_no), 'tail', id) end
return { 'FORGOTTEN', epoch, seq, forgotten }
