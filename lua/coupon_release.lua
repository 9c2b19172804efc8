#!lua
-- Lets coupons be issued again that a rebuild withheld.
--
-- KEYS 1 meta      hash    partition state
--      2 outbox    stream
--      3 record    list    idempotency record
--      4 campaign  hash    total issued withheld reopening ...
-- ARGV 1 now (ms) in tests, else ''  2 fingerprint or ''  3 life of a record (ms)  4 request id  5 coupon id  6 coupons
--      7 token of the preparation (coupon_release_prepare) that the caller has waited for
-- Returns {'COUPONS_RELEASED', epoch, seq, coupons still withheld}
--      or {'REPLAYED', ...that} | KEY_REUSED | IN_PROGRESS | PARTITION_CLOSED
--      or CAMPAIGN_NOT_FOUND | RELEASE_NOT_PREPARED (the token is not the current one: prepare and wait again)
--      or INSUFFICIENT_STOCK (fewer are withheld)
-- Emits coupons_released
--@include lists
--@include partition
--@include idempotency
local meta, outbox, record, campaign = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, fingerprint, ttl, request_id, coupon_id, count, token =
  current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
local prior = replay(record, fingerprint)
if prior then return prior end
local c = redis.call('HMGET', campaign, 'total', 'withheld', 'reopening')
if not c[1] then return { 'CAMPAIGN_NOT_FOUND' } end
if c[3] ~= token then return { 'RELEASE_NOT_PREPARED' } end
local left = tonumber(c[2] or 0) - count
if left < 0 then return { 'INSUFFICIENT_STOCK' } end
local reply = { 'COUPONS_RELEASED', epoch, seq, left }
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'coupons_released', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'coupon', coupon_id, 'count', count, record_of(record, fingerprint, reply))
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', campaign, 'withheld', left)
redis.call('HDEL', campaign, 'reopening')
return remember(record, fingerprint, ttl, reply)
