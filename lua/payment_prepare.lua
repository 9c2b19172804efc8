#!lua
-- Keeps the preparation of a payment with its order: the last one counts. It decides nothing and takes no money, so there is no
-- event: after a loss the customer prepares the payment anew.
--
-- KEYS 1 meta   hash  partition state
--      2 order  hash
-- ARGV 1 user id  2 the preparation, as JSON
-- Returns PREPARED | ORDER_NOT_FOUND | ALREADY_PAID | ALREADY_CLOSED | IN_PROGRESS | PARTITION_CLOSED
--@include partition
local meta, order = KEYS[1], KEYS[2]
local user_id, preparation = ARGV[1], ARGV[2]

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local o = redis.call('HMGET', order, 'user', 'status', 'gateway')
if not o[1] or o[1] ~= user_id then return { 'ORDER_NOT_FOUND' } end
if o[2] == 'PAID' then return { 'ALREADY_PAID' } end
if o[2] ~= 'PENDING' then return { 'ALREADY_CLOSED' } end
if o[3] == 'STARTED' then return { 'IN_PROGRESS' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('HSET', order, 'prepared', preparation)
return { 'PREPARED' }
