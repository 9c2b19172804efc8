#!lua
-- Puts a coupon, which a campaign of another partition issued, beside its user, before an order uses it. A repeat changes nothing.
--
-- KEYS 1 meta    hash    state of the user's partition
--      2 outbox  stream
--      3 user    hash    by coupon id, the user's coupons, and ...
-- ARGV 1 now (ms) in tests, else ''  2 request id  3 user id  4 coupon id  5 issue number  6 issued at (ms)
-- Returns {'GRANTED', epoch, seq} or ALREADY_GRANTED | PARTITION_CLOSED
-- Emits coupon_granted
--@include partition
local meta, outbox, coupons = KEYS[1], KEYS[2], KEYS[3]
local now, request_id, user_id, coupon_id, issue_no, issued_at = current_time(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local epoch, seq = begin_decision(meta)
if not epoch then return { 'PARTITION_CLOSED' } end
if redis.call('HEXISTS', coupons, coupon_id) == 1 then return { 'ALREADY_GRANTED' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('XADD', outbox, '*', 'v', 1, 'kind', 'coupon_granted', 'epoch', epoch, 'seq', seq, 'at', now,
  'rid', request_id, 'coupon', coupon_id, 'user', user_id, 'issue_no', issue_no, 'issued_at', issued_at)
redis.call('HSET', meta, 'seq', seq)
redis.call('HSET', coupons, coupon_id, issue_no .. '|' .. issued_at .. '|A||')
return { 'GRANTED', epoch, seq }
