#!lua
-- Keeps the preparation of a payment with its order, and the ids of the last ones: the customer may come back from any of them.
-- It decides nothing and takes no money, so there is no event: after a loss the customer prepares the payment anew.
--
-- KEYS 1 meta   hash  partition state
--      2 order  hash
-- ARGV 1 user id  2 the preparation, as JSON  3 the payment type and the provider's id of the payment, or ''
-- Returns PREPARED | ORDER_NOT_FOUND | ALREADY_PAID | ALREADY_CLOSED | IN_PROGRESS | PARTITION_CLOSED
--@include partition
local meta, order = KEYS[1], KEYS[2]
local user_id, preparation, prepared_id = ARGV[1], ARGV[2], ARGV[3]
local MAX_IDS = 8

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local o = redis.call('HMGET', order, 'user', 'status', 'gateway', 'prepared_ids')
if not o[1] or o[1] ~= user_id then return { 'ORDER_NOT_FOUND' } end
if o[2] == 'PAID' then return { 'ALREADY_PAID' } end
if o[2] ~= 'PENDING' then return { 'ALREADY_CLOSED' } end
if o[3] == 'STARTED' then return { 'IN_PROGRESS' } end
local ids = {}
for id in string.gmatch(o[4] or '', '[^\n]+') do ids[#ids + 1] = id end
if prepared_id ~= '' then ids[#ids + 1] = prepared_id end
local kept = table.concat(ids, '\n', math.max(1, #ids - MAX_IDS + 1))
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('HSET', order, 'prepared', preparation, 'prepared_ids', kept)
return { 'PREPARED' }
